//! Batches of a data set on the device.

use noiseforge::data::{Augment, Dataset, DeviceData, Pick, Spec, Split};
use noiseforge::gpu::Gpu;
use noiseforge::ops::step::{Cursor, end};
use noiseforge::tensor::{DType, Shape};
use noiseforge::{Result, Tensor};

use crate::harness::{DTYPES, once, rounded, run, values};
use crate::numbers::{get_u32, put_u32};

/// Floats of a size without whole vectors.
fn floats() -> Dataset {
    let mut x = values(Shape::new(7, 5, 9, 3), 31);
    x.data_mut::<f32>()
        .iter_mut()
        .for_each(|v| *v = 0.5 + 0.5 * *v);
    let classes = (0..3).map(|c| c.to_string()).collect();
    Dataset::from_tensor(&x, (0..7).map(|i| i % 3).collect(), classes).unwrap()
}

/// Bytes of whole vectors.
fn bytes() -> Dataset {
    Spec::Synthetic { n: 5 }.load(Split::Train, 3).unwrap()
}

/// Bytes of one channel, in rows without whole vectors.
fn grey() -> Dataset {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, descr: &str, shape: &str, data: &[u8]| {
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend((header.len() as u16).to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        std::fs::write(dir.path().join(name), file).unwrap();
    };
    let pixels: Vec<u8> = (0..4 * 6 * 7).map(|i| (i * 37 % 256) as u8).collect();
    write("x.npy", "|u1", "(4, 6, 7, 1)", &pixels);
    write("y.npy", "|u1", "(4,)", &[2, 0, 1, 2]);
    let images = dir.path().join("x.npy");
    let labels = dir.path().join("y.npy");
    Spec::Npy { images, labels }.load(Split::Train, 0).unwrap()
}

/// An epoch's batches as a graph gives them: images, labels, ids and draws.
fn epoch(
    gpu: &Gpu,
    data: &Dataset,
    picks: &[Pick],
    batch: usize,
    dtype: DType,
) -> Result<Vec<Tensor>> {
    let device = DeviceData::new(data, gpu)?;
    let plan = device.plan(picks, batch)?;
    let mut cursor = Cursor::new(gpu)?;
    cursor.set(0, 40)?;
    let (graph, step) = gpu.capture(|| {
        let step = device.batch(&plan, &cursor, batch, dtype)?;
        end(None, &mut cursor)?;
        Ok(step)
    })?;
    let mut out = Vec::new();
    let push = |out: &mut Vec<Tensor>, step: &noiseforge::data::Batch| -> Result<()> {
        let mut words = step.labels.to_vec()?;
        words.extend(step.rows.to_host()?.iter().flat_map(|r| [r.id, r.draw]));
        out.push(put_u32(gpu, &words)?);
        // A copy: the graph writes to the same place again.
        out.push(step.x.to_cpu()?.to_gpu(gpu)?);
        Ok(())
    };
    for _ in 0..picks.len() / batch {
        graph.launch()?;
        push(&mut out, &step)?;
    }
    let rest = picks.len() % batch;
    if rest > 0 {
        push(&mut out, &device.batch(&plan, &cursor, rest, dtype)?)?;
    }
    Ok(out)
}

#[test]
fn batches_are_the_cpus_to_the_bit() {
    let crop = Augment { pad: 3, flip: true };
    for (data, augment, batch) in [
        (floats(), Some(crop), 3),
        (bytes(), Some(crop), 2),
        (grey(), Some(Augment { pad: 5, flip: true }), 4),
        (bytes(), None, 5),
        (floats(), Some(Augment { pad: 0, flip: true }), 7),
    ] {
        let (seed, number) = (6, 2);
        for dtype in DTYPES {
            let picks = |gpu: &Gpu| {
                DeviceData::new(&data, gpu)?.training_picks(augment.as_ref(), seed, number, batch)
            };
            let found = run(|gpu| epoch(gpu, &data, &picks(gpu)?, batch, dtype));
            let order = data.shuffled_indices(seed, number);
            assert_eq!(found.len(), 2 * order.len().div_ceil(batch));
            for ((step, chunk), found) in order.chunks(batch).enumerate().zip(found.chunks(2)) {
                let (x, labels) = match &augment {
                    Some(augment) => data.augmented_batch(chunk, augment, seed, number).unwrap(),
                    None => data.batch(chunk).unwrap(),
                };
                let mut words = labels;
                words.extend((0..chunk.len() as u32).flat_map(|id| [id, 40 + step as u32]));
                assert_eq!(get_u32(&found[0]), words);
                assert_eq!(found[1].data::<f32>(), rounded(&x, dtype).data::<f32>());
            }
        }
    }
}

/// A plan is set anew in place; a cursor past its end repeats the last pick instead of reading on.
#[test]
fn a_plan_keeps_its_place_and_its_end() -> Result<()> {
    let data = floats();
    once(|gpu| {
        let device = DeviceData::new(&data, gpu)?;
        let pick = |index| Pick {
            index,
            id: 100 + index,
            dy: 0,
            dx: 0,
            flip: 0,
        };
        let mut plan = device.plan(&[pick(0), pick(1), pick(2)], 2)?;
        let mut cursor = Cursor::new(gpu)?;
        let (graph, step) = gpu.capture(|| device.batch(&plan, &cursor, 2, DType::F32))?;
        device.set_plan(&mut plan, &[pick(6), pick(5), pick(4)])?;
        for (batch, indices) in [(0, [6, 5]), (1, [4, 4]), (u32::MAX, [4, 4])] {
            cursor.set(batch, 9)?;
            graph.launch()?;
            let (x, labels) = data.batch(&indices)?;
            assert_eq!(step.labels.to_vec()?, labels);
            assert_eq!(step.x.to_cpu()?.data::<f32>(), x.data::<f32>());
            let rows: Vec<(u32, u32)> = step
                .rows
                .to_host()?
                .iter()
                .map(|r| (r.id, r.draw))
                .collect();
            assert_eq!(rows, indices.map(|i| (100 + i as u32, 9)));
        }
        Ok(())
    })
}

#[test]
fn what_does_not_fit_is_refused() -> Result<()> {
    let data = floats();
    once(|gpu| {
        let device = DeviceData::new(&data, gpu)?;
        let augment = Augment {
            pad: 5,
            flip: false,
        };
        assert_eq!(
            device
                .training_picks(Some(&augment), 0, 0, 2)
                .unwrap_err()
                .to_string(),
            "DeviceData::training_picks: augment: expected padding smaller than the image (5), found 5"
        );
        assert_eq!(
            device
                .training_picks(None, 0, 0, 0)
                .unwrap_err()
                .to_string(),
            "DeviceData::training_picks: batch: expected at least 1 row, found 0"
        );
        let pick = Pick {
            index: 7,
            id: 0,
            dy: 0,
            dx: 0,
            flip: 0,
        };
        assert_eq!(
            device.plan(&[pick], 1).err().unwrap().to_string(),
            "DeviceData::set_plan: picks: expected images below 7, found 7"
        );
        assert_eq!(
            device.plan(&[], 1).err().unwrap().to_string(),
            "DeviceData::plan: picks: expected at least one, found none"
        );
        let plan = device.plan(&[Pick { index: 0, ..pick }], 1)?;
        let cursor = Cursor::new(gpu)?;
        let error = |n, dtype| {
            let batch = device.batch(&plan, &cursor, n, dtype);
            batch.err().unwrap().to_string()
        };
        assert_eq!(
            error(2, DType::F32),
            "DeviceData::batch: n: expected 1 to 1 rows, found 2"
        );
        assert_eq!(
            error(1, DType::F64),
            "Tensor: dtype: expected f32, bf16 or f16 on a GPU, found f64"
        );
        Ok(())
    })
}
