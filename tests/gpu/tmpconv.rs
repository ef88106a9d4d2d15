use crate::harness::*;
use noiseforge_emulator::Mode;
use noiseforge::ops::conv2d;
use noiseforge::tensor::{DType, Shape};
#[test]
fn tmp_debug() {
    let spec: Vec<usize> = std::env::var("CASE").unwrap().split(',').map(|v| v.parse().unwrap()).collect();
    let case = crate::conv2d::Case::new(spec.try_into().unwrap());
    let i = case.inputs(DType::F32);
    let e = emulator().unwrap();
    for mode in [6, 0, 1] {
        e.set_mode(Mode::ALL[mode]);
        let gpu = open();
        let y = (|| conv2d::forward(&i.x.to_gpu(&gpu)?, &i.w.to_gpu(&gpu)?, None, case.conv)?.to_cpu())();
        match y { Ok(y) => println!("{mode}: {:?}", &y.data::<f32>()[..4.min(y.shape().len())]), Err(er) => println!("{mode}: {er} {:?}", e.last_report()) }
    }
    let y = conv2d::forward(&i.x, &i.w, None, case.conv).unwrap();
    println!("cpu {:?}", &y.data::<f32>()[..4.min(y.shape().len())]);
    let _ = Shape::vector(1);
}
