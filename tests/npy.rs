//! `.npy` files and atomic writing.

use std::fs;
use std::io::Write;
use std::path::Path;

use noiseforge::Error;
use noiseforge::io::atomic::write_atomic;
use noiseforge::io::npy::{self, Array, Values};

/// A version 1.0 file with this header and these elements.
fn file(dir: &Path, header: &str, data: &[u8]) -> std::path::PathBuf {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    let path = dir.join("x.npy");
    fs::write(&path, bytes).unwrap();
    path
}

fn array(descr: &str, order: &str, shape: &str) -> String {
    format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}")
}

/// The message without the directory.
fn message(path: &Path) -> String {
    let error = npy::read(path).unwrap_err().to_string();
    error.replace(&path.display().to_string(), "x.npy")
}

#[test]
fn written_file_is_numpys_own_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    npy::write_f32(
        &path,
        &[2, 3],
        &[0.0, 1.0, -2.5, 3.0, f32::MIN_POSITIVE, 5.0],
    )
    .unwrap();
    // numpy.save of the same array.
    let mut expected = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
    expected.extend(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }");
    expected.resize(127, b' ');
    expected.push(b'\n');
    for v in [0.0f32, 1.0, -2.5, 3.0, f32::MIN_POSITIVE, 5.0] {
        expected.extend(v.to_le_bytes());
    }
    assert_eq!(fs::read(&path).unwrap(), expected);
}

#[test]
fn what_is_written_is_read_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    // Longer than one chunk of the writer, with values that compare badly.
    let mut data: Vec<f32> = (0..300_007).map(|i| (i as f32).sin()).collect();
    data[5] = f32::NAN;
    data[6] = f32::NEG_INFINITY;
    data[7] = -0.0;
    for shape in [vec![300_007], vec![1, 300_007, 1, 1]] {
        npy::write_f32(&path, &shape, &data).unwrap();
        let (found, back) = npy::read_f32(&path).unwrap();
        assert_eq!(found, shape);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&data));
    }
    npy::write_f32(&path, &[], &[7.0]).unwrap();
    assert_eq!(npy::read_f32(&path).unwrap(), (vec![], vec![7.0]));
    npy::write_f32(&path, &[3, 0], &[]).unwrap();
    assert_eq!(npy::read_f32(&path).unwrap(), (vec![3, 0], vec![]));
}

#[test]
fn every_integer_type_and_byte_order_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let ints = |values: &[i64]| Values::Int(values.to_vec());
    let cases: [(&str, Vec<u8>, Values); 13] = [
        ("|u1", vec![0, 200, 255], Values::U8(vec![0, 200, 255])),
        ("|i1", vec![0, 200, 255], ints(&[0, -56, -1])),
        ("<i2", vec![1, 0, 254, 255, 0, 1], ints(&[1, -2, 256])),
        (">i2", vec![0, 1, 255, 254, 1, 0], ints(&[1, -2, 256])),
        ("<u2", vec![1, 0, 254, 255, 0, 1], ints(&[1, 65534, 256])),
        (">u2", vec![0, 1, 255, 254, 1, 0], ints(&[1, 65534, 256])),
        (
            "<i4",
            bytes(&[1i32, -2, 7].map(i32::to_le_bytes)),
            ints(&[1, -2, 7]),
        ),
        (
            ">i4",
            bytes(&[1i32, -2, 7].map(i32::to_be_bytes)),
            ints(&[1, -2, 7]),
        ),
        (
            "<u4",
            bytes(&[1u32, u32::MAX, 7].map(u32::to_le_bytes)),
            ints(&[1, 4294967295, 7]),
        ),
        (
            "<i8",
            bytes(&[1i64, i64::MIN, 7].map(i64::to_le_bytes)),
            ints(&[1, i64::MIN, 7]),
        ),
        (
            ">u8",
            bytes(&[1u64, 1 << 62, 7].map(u64::to_be_bytes)),
            ints(&[1, 1 << 62, 7]),
        ),
        (
            "<f4",
            bytes(&[1f32, -2.5, 7.0].map(f32::to_le_bytes)),
            Values::F32(vec![1.0, -2.5, 7.0]),
        ),
        (
            ">f4",
            bytes(&[1f32, -2.5, 7.0].map(f32::to_be_bytes)),
            Values::F32(vec![1.0, -2.5, 7.0]),
        ),
    ];
    for (descr, data, values) in cases {
        let path = file(dir.path(), &array(descr, "False", "(3,)"), &data);
        let shape = vec![3];
        assert_eq!(
            npy::read(&path).unwrap(),
            Array { shape, values },
            "{descr}"
        );
    }
}

fn bytes<const N: usize>(parts: &[[u8; N]]) -> Vec<u8> {
    parts.concat()
}

#[test]
fn fortran_order_is_turned_into_c_order() {
    let dir = tempfile::tempdir().unwrap();
    let shape = [2usize, 3, 4];
    let mut fortran = [0u8; 24];
    let mut c = [0u8; 24];
    for i in 0..2 {
        for j in 0..3 {
            for k in 0..4 {
                let value = (100 * i + 10 * j + k) as u8;
                c[(i * 3 + j) * 4 + k] = value;
                fortran[i + 2 * (j + 3 * k)] = value;
            }
        }
    }
    let path = file(dir.path(), &array("|u1", "True", "(2, 3, 4)"), &fortran);
    let values = Values::U8(c.to_vec());
    let shape = shape.to_vec();
    assert_eq!(npy::read(&path).unwrap(), Array { shape, values });
    let path = file(dir.path(), &array("|u1", "True", "(2, 0)"), &[]);
    assert_eq!(npy::read(&path).unwrap().values, Values::U8(vec![]));
}

#[test]
fn other_writers_headers_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for header in [
        "{\"shape\":(2,),\"fortran_order\":False,\"descr\":\"u1\"}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (2L,)}\n",
        " { 'descr' : '|u1' , 'shape' : [ 2 ] , 'fortran_order' : False , }   ",
    ] {
        let path = file(dir.path(), header, &[3, 4]);
        assert_eq!(
            npy::read(&path).unwrap().values,
            Values::U8(vec![3, 4]),
            "{header}"
        );
    }
    // Version 2.0: four bytes of length.
    let header = array("|u1", "False", "(2,)");
    let mut bytes = b"\x93NUMPY\x02\x00".to_vec();
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend([3, 4]);
    let path = dir.path().join("two.npy");
    fs::write(&path, bytes).unwrap();
    assert_eq!(npy::read(&path).unwrap().values, Values::U8(vec![3, 4]));
}

#[test]
fn bad_files_are_named_with_place_expectation_and_finding() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let types = "the type f4 (f32), u1 (u8) or another integer type";
    let check = |header: &str, data: &[u8], expected: &str| {
        let data_at = (10 + header.len()).to_string();
        let expected = expected.replace("DATA", &data_at);
        assert_eq!(message(&file(dir, header, data)), expected, "{header}");
    };
    check(
        &array("<f8", "False", "(1,)"),
        &[0; 8],
        &format!("x.npy at byte 20: expected {types}, found '<f8'"),
    );
    check(
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}",
        &[0; 4],
        &format!("x.npy at byte 20: expected {types}, found a record type"),
    );
    check(
        &array("<f4", "False", "(2, 3)"),
        &[0; 23],
        "x.npy at byte DATA: expected 24 bytes of (2, 3) f4, found 23 bytes",
    );
    check(
        &array("<f4", "False", "(2,)"),
        &[0; 9],
        "x.npy at byte DATA: expected 8 bytes of (2,) f4, found 9 bytes",
    );
    check(
        &array("<f4", "False", "(99999999999999999999,)"),
        &[],
        "x.npy at byte 61: expected the length of an axis, found `9999999999999999`",
    );
    check(
        &array("<f4", "False", "(4294967296, 4294967296)"),
        &[],
        "x.npy at byte DATA: expected an array that fits into memory, not (4294967296, 4294967296), \
         found 0 bytes",
    );
    check(
        &array("|u1", "False", "(1000000000000,)"),
        &[1],
        "x.npy at byte DATA: expected 1000000000000 bytes of (1000000000000,) u1, found 1 bytes",
    );
    check(
        &array("<u8", "False", "(1,)"),
        &[0, 0, 0, 0, 0, 0, 0, 128],
        "x.npy at byte DATA: expected an integer below 2^63, found a larger one",
    );
    check(
        "{'descr': '<f4', 'shape': (1,)}",
        &[0; 4],
        "x.npy at byte 41: expected a header with 'fortran_order', found none",
    );
    check(
        "{'magic': 1}",
        &[],
        "x.npy at byte 11: expected 'descr', 'fortran_order' or 'shape', found 'magic'",
    );
    check("[]", &[], "x.npy at byte 10: expected `{`, found `[]`");
    check(
        "",
        &[],
        "x.npy at byte 10: expected `{`, found the end of the header",
    );
    check(
        "{'descr",
        &[],
        "x.npy at byte 11: expected a string with an end, found `'descr`",
    );
    check(
        &array("<f4", "0", "(1,)"),
        &[0; 4],
        "x.npy at byte 44: expected True or False, found `0, 'shape': (1,)`",
    );
    check(
        &array("<f4", "False", "1"),
        &[0; 4],
        "x.npy at byte 60: expected `(`, found `1, }`",
    );
    check(
        &array("<f4", "False", "(-1,)"),
        &[0; 4],
        "x.npy at byte 61: expected the length of an axis, found `-1,), }`",
    );
    // Nesting as deep as a header can be is refused, not followed.
    check(
        &"(".repeat(9_999),
        &[],
        "x.npy at byte 10: expected `{`, found `((((((((((((((((`",
    );

    let path = dir.join("x.npy");
    for (content, expected) in [
        (
            &b""[..],
            "x.npy at byte 0: expected the 8 bytes that begin a .npy file, found the end of the file after 0 bytes",
        ),
        (
            b"PK\x03\x04zip archive",
            "x.npy at byte 0: expected \\x93NUMPY, which begins a .npy file, found PK\\x03\\x04zi",
        ),
        (
            b"\x93NUMPY\x09\x00aa",
            "x.npy at byte 6: expected version 1.0, 2.0 or 3.0, found 9.0",
        ),
        (
            b"\x93NUMPY\x01\x00\x76",
            "x.npy at byte 8: expected the header's length, found the end of the file after 1 bytes",
        ),
        (
            b"\x93NUMPY\x01\x00\x76\x00{'de",
            "x.npy at byte 10: expected a header of 118 bytes, found the end of the file after 4 bytes",
        ),
        (
            b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
            "x.npy at byte 8: expected a header of at most 10000 bytes, found 4294967295",
        ),
    ] {
        fs::write(&path, content).unwrap();
        assert_eq!(message(&path), expected);
    }
    assert_eq!(
        npy::read(dir).unwrap_err().to_string(),
        format!(
            "{}: expected a .npy file, found a directory or device",
            dir.display()
        )
    );
    let none = dir.join("none.npy");
    assert!(
        matches!(npy::read(&none), Err(Error::Io { action: "read", path, .. }) if path == none)
    );
    let path = file(dir, &array("|u1", "False", "(1,)"), &[1]);
    assert!(
        npy::read_f32(&path)
            .unwrap_err()
            .to_string()
            .ends_with("expected an array of f32, found integers")
    );
}

#[test]
fn every_truncation_and_every_changed_byte_is_an_error_or_an_array() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    npy::write_f32(&path, &[2, 3], &[0.5; 6]).unwrap();
    let whole = fs::read(&path).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        npy::read(&path).unwrap_err();
    }
    // No byte of the prefix and header, changed to one that could matter, makes it panic; an array has its shape's size.
    for at in 0..128 {
        for &value in b"\0\x01\x02\xff09'\",:()[]{}<>|- FTLfiu" {
            let mut bytes = whole.clone();
            bytes[at] = value;
            fs::write(&path, bytes).unwrap();
            if let Ok(Array { shape, values }) = npy::read(&path) {
                let len = match values {
                    Values::U8(v) => v.len(),
                    Values::F32(v) => v.len(),
                    Values::Int(v) => v.len(),
                };
                assert_eq!(len, shape.iter().product::<usize>());
            }
        }
    }
}

#[test]
fn a_shape_that_does_not_fit_the_data_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.npy");
    let error = npy::write_f32(&path, &[2, 2], &[0.0; 3]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "npy::write_f32: shape: expected 3 elements, as the data, found (2, 2)"
    );
    assert_eq!(names(dir.path()), [""; 0]);
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn atomic_writing_replaces_or_leaves_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.txt");
    write_atomic(&path, |f| f.write_all(b"first")).unwrap();
    write_atomic(&path, |f| f.write_all(b"second")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(names(dir.path()), ["out.txt"]);

    let full = std::io::ErrorKind::StorageFull;
    let error = write_atomic(&path, |f| {
        f.write_all(&[0; 100_000])?;
        Err(full.into())
    })
    .unwrap_err();
    assert!(matches!(&error, Error::Io { action: "write", source, .. } if source.kind() == full));
    assert_eq!(fs::read(&path).unwrap(), b"second");
    assert_eq!(names(dir.path()), ["out.txt"]);

    // A panic in the middle leaves nothing either.
    let panicked = std::panic::catch_unwind(|| write_atomic(&path, |_| panic!("in the middle")));
    assert!(panicked.is_err());
    assert_eq!(names(dir.path()), ["out.txt"]);
}

#[test]
fn atomic_writing_names_the_place_it_cannot_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none/out.txt");
    let error = write_atomic(&path, |_| Ok(())).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("cannot write {}: ", path.display())),
        "{error}"
    );
    let error = write_atomic(dir.path(), |_| Ok(()))
        .unwrap_err()
        .to_string();
    let expected = format!(
        "{}: expected a name for a file, found a directory",
        dir.path().display()
    );
    assert_eq!(error, expected);
    // A file stands where the directory should.
    fs::write(dir.path().join("file"), "x").unwrap();
    assert!(write_atomic(&dir.path().join("file/out.txt"), |_| Ok(())).is_err());
    assert_eq!(names(dir.path()), ["file"]);
}

#[cfg(unix)]
#[test]
fn atomic_writing_gives_the_permissions_of_an_ordinary_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (plain, atomic) = (dir.path().join("plain"), dir.path().join("atomic"));
    fs::write(&plain, "x").unwrap();
    write_atomic(&atomic, |f| f.write_all(b"x")).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&atomic), mode(&plain));
}
