//! Checkpoints: bits survive, layouts are PyTorch's, and no broken file is accepted.

use std::path::Path;

use noiseforge::io::checkpoint::{
    Array, ArrayData, ArrayType, Checkpoint, Slot, conv_from_oihw, conv_to_oihw, linear_from_oi,
    linear_to_oi, vector_from_array, vector_to_array,
};
use noiseforge::{Error, Shape, Tensor};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Values whose bits are easily lost: signed zero, subnormals, infinities, NaN with a payload.
fn sample() -> Checkpoint {
    let odd = [
        0x0000_0000u32,
        0x8000_0000,
        0x0000_0001,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_1234,
        0x3f80_0001,
        0x7f7f_ffff,
    ];
    let mut c = Checkpoint::default();
    let bits = odd.iter().map(|&b| f32::from_bits(b)).collect();
    c.tensors
        .insert("features.0.weight".into(), Array::f32([2, 1, 2, 2], bits));
    c.tensors.insert(
        "features.0.bias".into(),
        Array::f32([3], vec![1.0, -2.5, 3e-9]),
    );
    c.tensors
        .insert("features.1.num_batches_tracked".into(), Array::counter(-7));
    c.tensors.insert("empty".into(), Array::f32([0, 5], vec![]));
    c.metadata
        .insert("arch".into(), "small \"é\" </script>".into());
    c.metadata.insert("sigma".into(), "0.2".into());
    c.metadata.insert("step".into(), "12".into());
    c
}

fn bits(c: &Checkpoint) -> Vec<(String, Vec<usize>, Vec<i64>)> {
    let of = |a: &Array| match &a.data {
        ArrayData::F32(v) => v.iter().map(|x| i64::from(x.to_bits())).collect(),
        ArrayData::I64(v) => v.clone(),
    };
    c.tensors
        .iter()
        .map(|(n, a)| (n.clone(), a.shape.clone(), of(a)))
        .collect()
}

/// A safetensors file of this header and this many bytes of tensors.
fn forge(path: &Path, header: &str, data: &[u8]) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    std::fs::write(path, file).unwrap();
}

fn refusal(path: &Path) -> String {
    match Checkpoint::read(path) {
        Err(e @ Error::File { .. }) => e.to_string(),
        other => panic!("expected a file error, got {other:?}"),
    }
}

#[test]
fn round_trip_keeps_every_bit() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let c = sample();
    c.write(&path).unwrap();
    let back = Checkpoint::read(&path).unwrap();
    assert_eq!(bits(&back), bits(&c));
    assert_eq!(back.metadata, c.metadata);
    // Over an existing file, to the same bytes, with nothing left beside it.
    let first = std::fs::read(&path).unwrap();
    back.write(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn file_longer_than_every_buffer() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let mut c = Checkpoint::default();
    let ramp: Vec<f32> = (0..100_003).map(|i| i as f32).collect();
    c.tensors.insert("x".into(), Array::f32([100_003], ramp));
    c.write(&path).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap(), c);
}

#[test]
fn the_crate_of_the_format_reads_what_is_written() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    sample().write(&path).unwrap();
    let file = std::fs::read(&path).unwrap();
    let read = safetensors::SafeTensors::deserialize(&file).unwrap();
    assert_eq!(read.len(), 4);
    let bias = read.tensor("features.0.bias").unwrap();
    assert_eq!(bias.shape(), [3]);
    assert_eq!(bias.data()[4..8], (-2.5f32).to_le_bytes());
    let header = u64::from_le_bytes(file[..8].try_into().unwrap());
    assert_eq!(header % 8, 0, "tensors are aligned");
}

#[test]
fn every_truncation_is_refused() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    sample().write(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        let text = refusal(&path);
        assert!(text.contains("a.safetensors"), "{len}: {text}");
    }
    std::fs::write(&path, [&whole[..], &[0]].concat()).unwrap();
    assert!(refusal(&path).contains("as its header says"));
}

#[test]
fn every_damaged_byte_of_the_header_is_an_answer_not_a_panic() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    sample().write(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for at in 0..header {
        for byte in [0, b'"', b'9', b'}', 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            std::fs::write(&path, damaged).unwrap();
            let _ = Checkpoint::read(&path);
        }
    }
}

#[test]
fn lying_headers() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let entry = |shape: &str, end: &str| {
        format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    for (header, data) in [
        (entry("[2]", "4"), 4),
        (entry("[1]", "8"), 8),
        (entry("[4611686018427387904]", "0"), 0),
        (entry("[250000000000]", "1000000000000"), 4),
        (entry("[4294967296,4294967296]", "0"), 0),
        (entry("[-1]", "4"), 4),
        (entry("[1]", "18446744073709551615"), 4),
        ("[]".into(), 0),
        ("null".into(), 0),
        (r#"{"x":1}"#.into(), 0),
        (r#"{"__metadata__":{"a":1}}"#.into(), 0),
        ("[".repeat(100_000), 0),
        // A gap, and an overlap.
        (r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.into(), 8),
        (
            r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#
                .into(),
            4,
        ),
    ] {
        forge(&path, &header, &vec![0; data]);
        refusal(&path);
    }
    std::fs::write(&path, [0xff; 64]).unwrap();
    assert!(refusal(&path).ends_with(
        "at byte 0: expected a safetensors header of at most 56 bytes, found a header length of 18446744073709551615"
    ));
    std::fs::write(&path, b"PK\x03\x04 a zip file of torch.save, in fact").unwrap();
    refusal(&path);
}

#[test]
fn missing_metadata_is_empty_and_other_dtypes_become_f32() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let header = r#"{
        "d":{"dtype":"F64","shape":[2],"data_offsets":[0,16]},
        "h":{"dtype":"F16","shape":[8],"data_offsets":[16,32]},
        "b":{"dtype":"BF16","shape":[3],"data_offsets":[32,38]}}"#;
    let mut data = Vec::new();
    data.extend(0.1f64.to_le_bytes());
    data.extend(1e300f64.to_le_bytes());
    // 1, -2, largest, smallest normal, smallest subnormal, largest subnormal, -0, infinity.
    for h in [
        0x3c00u16, 0xc000, 0x7bff, 0x0400, 0x0001, 0x03ff, 0x8000, 0x7c00,
    ] {
        data.extend(h.to_le_bytes());
    }
    for b in [0x3f80u16, 0xc049, 0x7f80] {
        data.extend(b.to_le_bytes());
    }
    forge(&path, header, &data);
    let c = Checkpoint::read(&path).unwrap();
    assert!(c.metadata.is_empty());
    let tiny = 2f32.powi(-24);
    let expect = |name: &str, values: &[f32]| {
        let ArrayData::F32(found) = &c.tensors[name].data else {
            panic!("{name} is not F32")
        };
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(found), bits(values), "{name}: {found:?}");
    };
    expect("d", &[0.1, f32::INFINITY]);
    let smallest = 2f32.powi(-14);
    let h = [
        1.0,
        -2.0,
        65504.0,
        smallest,
        tiny,
        1023.0 * tiny,
        -0.0,
        f32::INFINITY,
    ];
    expect("h", &h);
    expect("b", &[1.0, -3.140625, f32::INFINITY]);
}

#[test]
fn dtypes_without_a_use_are_named() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    let header = r#"{"mask":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    forge(&path, header, &[1]);
    let text = refusal(&path);
    let at = 8 + header.len();
    assert!(
        text.ends_with(&format!(
            "a.safetensors at byte {at}: expected `mask` as F32, F64, F16, BF16 or I64, found U8"
        )),
        "{text}"
    );
}

#[test]
fn paths_that_are_no_files() {
    let dir = folder();
    assert!(matches!(
        Checkpoint::read(dir.path().join("none")),
        Err(Error::Io { action: "read", .. })
    ));
    refusal(dir.path());
    let e = sample().write(dir.path().join("none/a")).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Io {
                action: "write",
                ..
            }
        ),
        "{e}"
    );
    let e = sample().write(dir.path()).unwrap_err();
    assert!(matches!(e, Error::File { .. }), "{e}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_written_leaves_the_old_file() {
    let dir = folder();
    let path = dir.path().join("a.safetensors");
    sample().write(&path).unwrap();
    let before = std::fs::read(&path).unwrap();
    let mut c = sample();
    c.tensors.insert("x".into(), Array::f32([2, 2], vec![1.0]));
    assert_eq!(
        c.write(&path).unwrap_err().to_string(),
        "Checkpoint::write: tensors: expected as many elements in `x` as its shape [2, 2] says, found 1"
    );
    let mut c = sample();
    c.tensors.insert("__metadata__".into(), Array::counter(0));
    c.write(&path).unwrap_err();
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn layouts() {
    let shape = Shape::new(2, 3, 2, 5);
    let w = Tensor::from_vec(shape, (0..60).map(|i| i as f32).collect()).unwrap();
    let a = conv_to_oihw(&w);
    assert_eq!(a.shape, [2, 5, 3, 2]);
    let ArrayData::F32(v) = &a.data else { panic!() };
    for o in 0..2 {
        for i in 0..5 {
            for y in 0..3 {
                for x in 0..2 {
                    let here = ((o * 3 + y) * 2 + x) * 5 + i;
                    let there = ((o * 5 + i) * 3 + y) * 2 + x;
                    assert_eq!(v[there], here as f32);
                }
            }
        }
    }
    let back = conv_from_oihw(&a).unwrap();
    assert_eq!(back.shape(), shape);
    assert_eq!(back.data::<f32>(), w.data::<f32>());

    let w = Tensor::from_vec(
        Shape::new(3, 1, 1, 2),
        vec![1.0f64, 2.0, 3.0, 4.0, 5.0, 0.1],
    )
    .unwrap();
    let a = linear_to_oi(&w);
    assert_eq!(a, Array::f32([3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 0.1]));
    assert_eq!(linear_from_oi(&a).unwrap().shape(), w.shape());

    let b = Tensor::from_vec(Shape::vector(2), vec![1.0f32, 2.0]).unwrap();
    assert_eq!(vector_to_array(&b), Array::f32([2], vec![1.0, 2.0]));
    assert_eq!(
        vector_from_array(&vector_to_array(&b)).unwrap().shape(),
        b.shape()
    );
}

#[test]
fn arrays_of_another_form_are_refused() {
    assert_eq!(
        conv_from_oihw(&Array::f32([2], vec![0.0; 2]))
            .unwrap_err()
            .to_string(),
        "conv_from_oihw: array: expected F32 of shape [out, in, h, w], all sizes at least 1, found F32 of shape [2]"
    );
    assert_eq!(
        vector_from_array(&Array::counter(1))
            .unwrap_err()
            .to_string(),
        "vector_from_array: array: expected F32 of shape [c], all sizes at least 1, found I64 of shape []"
    );
    assert_eq!(
        linear_from_oi(&Array::f32([2, 3], vec![0.0; 5]))
            .unwrap_err()
            .to_string(),
        "linear_from_oi: array: expected as many elements as the shape [2, 3] says, found 5"
    );
    // Sizes whose product overflows only in one of the orders.
    let big = 1 << 40;
    conv_from_oihw(&Array::f32([big, 0, big, big], vec![])).unwrap_err();
    conv_from_oihw(&Array::f32([big, big, big, 1], vec![])).unwrap_err();
}

#[test]
fn the_first_misfit_is_named() {
    let slot = |name: &str, shape: &[usize], dtype, required| Slot {
        name: name.into(),
        shape: shape.into(),
        dtype,
        required,
    };
    let f = ArrayType::F32;
    let good = vec![
        slot("features.0.weight", &[2, 1, 2, 2], f, true),
        slot("features.0.bias", &[3], f, true),
        slot("features.1.num_batches_tracked", &[], ArrayType::I64, false),
        slot("features.2.num_batches_tracked", &[], ArrayType::I64, false),
        slot("empty", &[0, 5], f, true),
    ];
    let c = sample();
    c.expect("w.safetensors", &good).unwrap();

    let misfit = |at: usize, new: Slot| {
        let mut slots = good.clone();
        slots[at] = new;
        c.expect("w.safetensors", &slots).unwrap_err().to_string()
    };
    assert_eq!(
        misfit(0, slot("features.0.weight", &[64, 3, 3, 3], f, true)),
        "w.safetensors: expected `features.0.weight`: F32 of shape [64, 3, 3, 3], found F32 of shape [2, 1, 2, 2]"
    );
    assert_eq!(
        misfit(0, slot("classifier.weight", &[10, 8], f, true)),
        "w.safetensors: expected `classifier.weight`: F32 of shape [10, 8], found no tensor of that name"
    );
    assert_eq!(
        misfit(2, slot("features.1.num_batches_tracked", &[], f, true)),
        "w.safetensors: expected `features.1.num_batches_tracked`: F32 of shape [], found I64 of shape []"
    );
    assert_eq!(
        c.expect("w.safetensors", &good[..4])
            .unwrap_err()
            .to_string(),
        "w.safetensors: expected only tensors of this network, found `empty`: F32 of shape [0, 5]"
    );
}

/// Writes a file for a check by hand with PyTorch: its path is printed.
#[test]
fn example_file() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example.safetensors");
    sample().write(&path).unwrap();
    println!("{}", path.display());
}
