//! Data sets: known pixels, order, every error by its text.

use std::fs;
use std::path::{Path, PathBuf};

use noiseforge::Shape;
use noiseforge::data::{Dataset, Spec, Split};

fn all(data: &Dataset) -> (Vec<f32>, Vec<u32>) {
    let indices: Vec<usize> = (0..data.len()).collect();
    let (images, labels) = data.batch(&indices).unwrap();
    (images.data::<f32>().to_vec(), labels)
}

/// The message, with the directory of the test written as DIR.
fn failure(spec: &str, dir: &Path, split: Split) -> String {
    let spec: Spec = spec.replace("DIR", dir.to_str().unwrap()).parse().unwrap();
    let error = spec.load(split, 0).unwrap_err().to_string();
    error.replace(dir.to_str().unwrap(), "DIR")
}

// ---- specifications ----

#[test]
fn specifications_parse_and_display() {
    for (text, spec) in [
        ("synthetic", Spec::Synthetic { n: 4000 }),
        ("synthetic:70", Spec::Synthetic { n: 70 }),
        ("cifar10:a/b", Spec::Cifar10("a/b".into())),
        ("stl10:/x:y", Spec::Stl10("/x:y".into())),
        ("folder:.", Spec::Folder(".".into())),
        (
            "npy:x.npy,y.npy",
            Spec::Npy {
                images: "x.npy".into(),
                labels: "y.npy".into(),
            },
        ),
    ] {
        let parsed: Spec = text.parse().unwrap();
        assert_eq!(parsed, spec);
        assert_eq!(parsed.to_string().parse::<Spec>().unwrap(), spec);
    }
    let forms = "synthetic[:N], cifar10:DIR, stl10:DIR, folder:DIR or npy:IMAGES,LABELS";
    for text in [
        "", "cifar", "cifar10", "cifar10:", "npy:a", "npy:,b", "npy:a,", "/data",
    ] {
        assert_eq!(
            text.parse::<Spec>().unwrap_err().to_string(),
            format!("data: spec: expected {forms}, found `{text}`")
        );
    }
    for (text, expected) in [
        ("synthetic:0", "1 to 1000000 images, found 0"),
        ("synthetic:1000001", "1 to 1000000 images, found 1000001"),
        ("synthetic:x", "a number of images, found `x`"),
        ("synthetic:-1", "a number of images, found `-1`"),
    ] {
        assert_eq!(
            text.parse::<Spec>().unwrap_err().to_string(),
            format!("synthetic: n: expected {expected}")
        );
    }
}

// ---- batches ----

/// Two images of 2x3 pixels and 3 channels that count up.
fn counted(dir: &Path) -> Dataset {
    let bytes: Vec<u8> = (0..36).collect();
    write_npy(&dir.join("x.npy"), "|u1", "(2, 2, 3, 3)", &bytes);
    write_npy(&dir.join("y.npy"), "|u1", "(2,)", &[1, 0]);
    load_npy(dir)
}

fn load_npy(dir: &Path) -> Dataset {
    let spec = Spec::Npy {
        images: dir.join("x.npy"),
        labels: dir.join("y.npy"),
    };
    spec.load(Split::Train, 0).unwrap()
}

fn write_npy(path: &Path, descr: &str, shape: &str, data: &[u8]) {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

#[test]
fn batches_hold_the_images_asked_for_in_that_order() {
    let dir = tempfile::tempdir().unwrap();
    let data = counted(dir.path());
    assert_eq!(
        (data.len(), data.image_shape()),
        (2, Shape::new(1, 2, 3, 3))
    );
    let (images, labels) = data.batch(&[1, 0, 1]).unwrap();
    assert_eq!(images.shape(), Shape::new(3, 2, 3, 3));
    assert_eq!(labels, [0, 1, 0]);
    let expected: Vec<f32> = (18..36)
        .chain(0..18)
        .chain(18..36)
        .map(|v| v as f32 / 255.0)
        .collect();
    assert_eq!(images.data::<f32>(), expected);

    let one = data.take(1);
    assert_eq!((one.len(), one.labels()), (1, &[1][..]));
    assert_eq!(all(&one).0, all(&data).0[..18]);
    assert_eq!(data.take(9).len(), 2);
    let swapped = data.subset(&[1, 0]).unwrap();
    assert_eq!(swapped.labels(), [0, 1]);
    assert_eq!(all(&swapped).0[..18], all(&data).0[18..]);
    assert_eq!(swapped.classes(), ["0", "1"]);

    let message = |r: noiseforge::Result<_>| r.map(drop).unwrap_err().to_string();
    assert_eq!(
        message(data.batch(&[0, 2]).map(drop)),
        "Dataset::batch: indices: expected positions below 2, found 2"
    );
    assert_eq!(
        message(data.batch(&[]).map(drop)),
        "Dataset::batch: indices: expected at least one, found none"
    );
    assert_eq!(
        message(data.subset(&[5]).map(drop)),
        "Dataset::subset: indices: expected positions below 2, found 5"
    );
}

#[test]
fn a_data_set_can_be_made_of_a_tensor() {
    let shape = Shape::new(2, 1, 2, 1);
    let tensor = |data: [f32; 4]| noiseforge::Tensor::from_vec(shape, data.to_vec()).unwrap();
    let names = || vec!["a".to_owned(), "b".to_owned()];
    let good = tensor([0.0, 0.25, 0.5, 1.0]);
    let data = Dataset::from_tensor(&good, vec![1, 0], names()).unwrap();
    assert_eq!(all(&data), (vec![0.0, 0.25, 0.5, 1.0], vec![1, 0]));
    let op = "Dataset::from_tensor";
    for (images, labels, expected) in [
        (
            &good,
            vec![1],
            "labels: expected 2 labels, one per image, found 1",
        ),
        (
            &good,
            vec![1, 2],
            "labels: expected labels below 2, found 2 for image 1",
        ),
        (
            &tensor([0.0, 0.0, f32::NAN, 0.0]),
            vec![0, 0],
            "images: expected values in [0, 1], found NaN in image 1",
        ),
    ] {
        let error = Dataset::from_tensor(images, labels, names()).unwrap_err();
        assert_eq!(error.to_string(), format!("{op}: {expected}"));
    }
}

#[test]
fn shuffles_are_permutations_that_differ_by_epoch_and_seed() {
    let data = "synthetic:200".parse::<Spec>().unwrap();
    let data = data.load(Split::Train, 0).unwrap();
    let order = data.shuffled_indices(7, 0);
    let mut sorted = order.clone();
    sorted.sort();
    assert_eq!(sorted, (0..200).collect::<Vec<_>>());
    assert_eq!(order, data.shuffled_indices(7, 0));
    assert_ne!(order, data.shuffled_indices(7, 1));
    assert_ne!(order, data.shuffled_indices(8, 0));

    // Every image is as likely in every place: image 0 over 4 places, 4000 epochs. Each count is
    // binomial(4000, 1/4) with standard deviation 27.4; five of them either way.
    let four = data.take(4);
    let mut counts = [0; 4];
    for epoch in 0..4000 {
        let order = four.shuffled_indices(7, epoch);
        counts[order.iter().position(|&i| i == 0).unwrap()] += 1;
    }
    assert!(
        counts.iter().all(|c| (863..=1137).contains(c)),
        "{counts:?}"
    );
}

// ---- augmentation ----

/// The displacement and mirroring that turn `image` into `moved`, found by trying all of them.
fn find_move(
    image: &[f32],
    moved: &[f32],
    [h, w, c]: [usize; 3],
    pad: isize,
) -> Vec<(isize, isize, bool)> {
    let mut found = Vec::new();
    for dy in -pad..=pad {
        for dx in -pad..=pad {
            for flip in [false, true] {
                let same = (0..h * w * c).all(|i| {
                    let (y, x, channel) = (i / (w * c), i / c % w, i % c);
                    let x = if flip { w - 1 - x } else { x };
                    let (sy, sx) = (y as isize + dy, x as isize + dx);
                    let inside = (0..h as isize).contains(&sy) && (0..w as isize).contains(&sx);
                    let expected = match inside {
                        true => image[(sy as usize * w + sx as usize) * c + channel],
                        false => 0.0,
                    };
                    moved[i] == expected
                });
                if same {
                    found.push((dy, dx, flip));
                }
            }
        }
    }
    found
}

#[test]
fn augmented_images_are_padded_crops_each_as_likely_as_the_others() {
    let dir = tempfile::tempdir().unwrap();
    // 5x6 pixels, no two alike and none black, so that a move is found without doubt.
    let bytes: Vec<u8> = (1..=90).collect();
    write_npy(&dir.path().join("x.npy"), "|u1", "(1, 5, 6, 3)", &bytes);
    write_npy(&dir.path().join("y.npy"), "|u1", "(1,)", &[0]);
    let data = load_npy(dir.path());
    let (image, _) = all(&data);
    let augment = noiseforge::data::Augment { pad: 2, flip: true };

    const EPOCHS: u32 = 10_000;
    let mut counts = std::collections::BTreeMap::new();
    for epoch in 0..EPOCHS {
        let (moved, labels) = data.augmented_batch(&[0], &augment, 3, epoch).unwrap();
        assert_eq!(labels, [0]);
        let found = find_move(&image, moved.data::<f32>(), [5, 6, 3], 2);
        assert_eq!(found.len(), 1);
        *counts.entry(found[0]).or_insert(0u32) += 1;
    }
    // 5 * 5 * 2 moves, 200 of each expected. The statistic is chi-squared with 49 degrees of
    // freedom: mean 49, standard deviation sqrt(98); five of them.
    assert_eq!(counts.len(), 50);
    let statistic: f64 = counts
        .values()
        .map(|&n| (f64::from(n) - 200.0).powi(2) / 200.0)
        .sum();
    assert!(statistic < 49.0 + 5.0 * 98f64.sqrt(), "{statistic}");
}

#[test]
fn augmentation_depends_on_seed_epoch_and_image_alone() {
    let data = "synthetic:40".parse::<Spec>().unwrap();
    let data = data.load(Split::Train, 0).unwrap();
    let augment = noiseforge::data::Augment { pad: 4, flip: true };
    let get = |indices: &[usize], seed, epoch| {
        let (x, _) = data
            .augmented_batch(indices, &augment, seed, epoch)
            .unwrap();
        x.data::<f32>().to_vec()
    };
    let len = data.image_shape().len();
    let together = get(&[5, 17, 30, 5], 1, 2);
    for (row, index) in [5, 17, 30, 5].into_iter().enumerate() {
        assert_eq!(together[row * len..][..len], get(&[index], 1, 2));
    }
    let one_thread = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    assert_eq!(together, one_thread.install(|| get(&[5, 17, 30, 5], 1, 2)));
    assert_ne!(together, get(&[5, 17, 30, 5], 1, 3));
    assert_ne!(together, get(&[5, 17, 30, 5], 2, 2));

    let still = noiseforge::data::Augment {
        pad: 0,
        flip: false,
    };
    let (x, _) = data.augmented_batch(&[3, 4], &still, 1, 2).unwrap();
    assert_eq!(
        x.data::<f32>(),
        data.batch(&[3, 4]).unwrap().0.data::<f32>()
    );
    let wide = noiseforge::data::Augment {
        pad: 32,
        flip: false,
    };
    assert_eq!(
        data.augmented_batch(&[0], &wide, 0, 0)
            .unwrap_err()
            .to_string(),
        "Dataset::augmented_batch: augment: expected padding smaller than the image (32), found 32"
    );
}

// ---- synthetic ----

#[test]
fn synthetic_images_are_functions_of_seed_split_and_index() {
    let load = |text: &str, split, seed| {
        let spec: Spec = text.parse().unwrap();
        all(&spec.load(split, seed).unwrap())
    };
    let (images, labels) = load("synthetic:101", Split::Train, 5);
    assert_eq!(images.len(), 101 * 3072);
    assert_eq!(labels[..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
    assert_eq!(
        (images.clone(), labels),
        load("synthetic:101", Split::Train, 5)
    );
    // A smaller set is the beginning of a larger one.
    assert_eq!(load("synthetic:30", Split::Train, 5).0, images[..30 * 3072]);
    assert_ne!(load("synthetic:30", Split::Train, 6).0, images[..30 * 3072]);
    let (test, labels) = load("synthetic:101", Split::Test, 5);
    assert_eq!(labels.len(), 26);
    for train in images.chunks(3072) {
        assert!(test.chunks(3072).all(|image| image != train));
    }
}

#[test]
fn synthetic_classes_do_not_differ_in_mean_colour() {
    // Mean colours of a class over 400 images each differ by no more than chance: the statistic
    // of one channel is an F statistic of 9 and 3990 degrees of freedom, of mean 1 and standard
    // deviation sqrt(2 / 9); five of them.
    let spec: Spec = "synthetic".parse().unwrap();
    let data = spec.load(Split::Train, 1).unwrap();
    let (images, labels) = all(&data);
    for channel in 0..3 {
        let means: Vec<f64> = images
            .chunks(3072)
            .map(|image| {
                image[channel..]
                    .iter()
                    .step_by(3)
                    .map(|&v| f64::from(v))
                    .sum::<f64>()
                    / 1024.0
            })
            .collect();
        let mean = means.iter().sum::<f64>() / 4000.0;
        let mut of_class = [0.0; 10];
        for (m, &label) in means.iter().zip(&labels) {
            of_class[label as usize] += m / 400.0;
        }
        let between: f64 = of_class
            .iter()
            .map(|m| 400.0 * (m - mean).powi(2))
            .sum::<f64>()
            / 9.0;
        let within = means.iter().zip(&labels);
        let within: f64 = within
            .map(|(m, &l)| (m - of_class[l as usize]).powi(2))
            .sum::<f64>()
            / 3990.0;
        assert!(
            between / within < 1.0 + 5.0 * (2f64 / 9.0).sqrt(),
            "{}",
            between / within
        );
    }
}

// ---- cifar10 ----

/// A record whose planes count up, shifted by `start`.
fn record(label: u8, start: u8) -> Vec<u8> {
    let mut bytes = vec![label];
    bytes.extend((0..3072).map(|i| (i % 251) as u8 ^ start));
    bytes
}

fn write_cifar(dir: &Path) {
    for i in 1..=5u8 {
        let bytes = [record(i, i), record(9, 100 + i)].concat();
        fs::write(dir.join(format!("data_batch_{i}.bin")), bytes).unwrap();
    }
    fs::write(dir.join("test_batch.bin"), record(0, 77)).unwrap();
}

#[test]
fn cifar_planes_become_pixels_in_the_order_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    write_cifar(dir.path());
    let spec = Spec::Cifar10(dir.path().into());
    let data = spec.load(Split::Train, 0).unwrap();
    assert_eq!(data.image_shape(), Shape::new(1, 32, 32, 3));
    assert_eq!(data.labels(), [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]);
    assert_eq!(
        (data.classes()[0].as_str(), data.classes()[9].as_str()),
        ("airplane", "truck")
    );
    let (images, _) = all(&data);
    for (image, start) in images
        .chunks(3072)
        .zip([1, 101, 2, 102, 3, 103, 4, 104, 5, 105])
    {
        let planes = &record(0, start)[1..];
        for (i, value) in image.iter().enumerate() {
            assert_eq!(*value, f32::from(planes[i % 3 * 1024 + i / 3]) / 255.0);
        }
    }
    assert_eq!(spec.load(Split::Test, 0).unwrap().labels(), [0]);

    // The same from the folder that the archive unpacks to, and with names of its own.
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("cifar-10-batches-bin");
    fs::create_dir(&inner).unwrap();
    write_cifar(&inner);
    fs::write(
        inner.join("batches.meta.txt"),
        "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n",
    )
    .unwrap();
    let data = Spec::Cifar10(outer.path().into())
        .load(Split::Train, 0)
        .unwrap();
    assert_eq!(all(&data).0, images);
    assert_eq!(data.classes().concat(), "abcdefghij");
}

#[test]
fn cifar_errors_name_file_place_and_expectation() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let fail = || failure("cifar10:DIR", dir, Split::Train);
    let holds =
        "data_batch_1.bin to data_batch_5.bin and test_batch.bin (CIFAR-10, binary version)";
    assert_eq!(
        fail(),
        format!("DIR/data_batch_1.bin: expected this file beside {holds}, found no such file")
    );
    assert_eq!(
        failure("cifar10:DIR/none", dir, Split::Train),
        format!("DIR/none: expected a directory with {holds}, found no such directory")
    );
    write_cifar(dir);
    assert_eq!(
        failure("cifar10:DIR/test_batch.bin", dir, Split::Train),
        format!("DIR/test_batch.bin: expected a directory with {holds}, found a file")
    );

    let batch = dir.join("data_batch_3.bin");
    let whole = [record(1, 0), record(2, 0)].concat();
    for (len, offset, found) in [
        (0, 0, "an empty file"),
        (1, 0, "the end of the file after 1 bytes"),
        (3072, 0, "the end of the file after 3072 bytes"),
        (3074, 3073, "the end of the file after 1 bytes"),
        (6145, 3073, "the end of the file after 3072 bytes"),
    ] {
        fs::write(&batch, &whole[..len]).unwrap();
        assert_eq!(
            fail(),
            format!(
                "DIR/data_batch_3.bin at byte {offset}: expected a record of 3073 bytes, found {found}"
            )
        );
    }
    fs::write(&batch, [record(9, 0), record(10, 0)].concat()).unwrap();
    assert_eq!(
        fail(),
        "DIR/data_batch_3.bin at byte 3073: expected a label from 0 to 9, found 10"
    );
    fs::write(&batch, record(9, 0)).unwrap();
    fs::write(dir.join("batches.meta.txt"), "cat\ndog\n").unwrap();
    assert_eq!(
        fail(),
        "DIR/batches.meta.txt: expected 10 class names, one per line, found 2"
    );
}

#[test]
fn the_real_cifar_is_read() {
    let Some(dir) = std::env::var_os("NOISEFORGE_CIFAR10") else {
        println!("skipped: NOISEFORGE_CIFAR10 is not set");
        return;
    };
    let spec = Spec::Cifar10(dir.into());
    for split in [Split::Train, Split::Test] {
        let data = spec.load(split, 0).unwrap();
        let (images, labels) = all(&data);
        assert_eq!(data.image_shape(), Shape::new(1, 32, 32, 3));
        assert!((0..10).all(|class| labels.contains(&class)));
        // The set's known mean colour, (0.4914, 0.4822, 0.4465) with deviations near 0.25 a
        // pixel; between images about 0.14, so five standard errors of 1000 images are 0.022.
        for (channel, known) in [0.4914, 0.4822, 0.4465].into_iter().enumerate() {
            let values = images[channel..].iter().step_by(3).map(|&v| f64::from(v));
            let mean = values.sum::<f64>() / (images.len() / 3) as f64;
            assert!((mean - known).abs() < 0.022, "channel {channel}: {mean}");
        }
        // Neighbours in a row are alike, as they are not if planes and pixels are confused.
        let step: f64 = images
            .chunks(3072)
            .map(|image| f64::from((image[1536] - image[1539]).abs()))
            .sum();
        assert!(step / (data.len() as f64) < 0.1);
    }
}

// ---- stl10 ----

fn write_stl(dir: &Path, name: &str, labels: &[u8]) -> Vec<u8> {
    let bytes: Vec<u8> = (0..labels.len() * 27_648)
        .map(|i| (i % 251) as u8)
        .collect();
    fs::write(dir.join(format!("{name}_X.bin")), &bytes).unwrap();
    fs::write(dir.join(format!("{name}_y.bin")), labels).unwrap();
    bytes
}

#[test]
fn stl_columns_become_rows_and_labels_start_at_0() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = write_stl(dir.path(), "train", &[1, 10]);
    write_stl(dir.path(), "test", &[3]);
    let spec = Spec::Stl10(dir.path().into());
    let data = spec.load(Split::Train, 0).unwrap();
    assert_eq!(data.image_shape(), Shape::new(1, 96, 96, 3));
    assert_eq!(data.labels(), [0, 9]);
    assert_eq!(data.classes()[7], "monkey");
    let (images, _) = all(&data);
    for n in 0..2 {
        for (y, x, c) in [
            (0, 0, 0),
            (0, 1, 0),
            (1, 0, 0),
            (5, 90, 1),
            (95, 95, 2),
            (95, 0, 2),
        ] {
            let stored = bytes[n * 27_648 + c * 9216 + x * 96 + y];
            let value = images[((n * 96 + y) * 96 + x) * 3 + c];
            assert_eq!(value, f32::from(stored) / 255.0);
        }
    }
    assert_eq!(spec.load(Split::Test, 0).unwrap().labels(), [2]);
}

#[test]
fn stl_errors_name_file_place_and_expectation() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let fail = || failure("stl10:DIR", dir, Split::Train);
    let holds = "train_X.bin, train_y.bin, test_X.bin and test_y.bin (STL-10, binary version)";
    assert_eq!(
        fail(),
        format!("DIR/train_X.bin: expected this file beside {holds}, found no such file")
    );
    let bytes = write_stl(dir, "train", &[1, 0]);
    assert_eq!(
        fail(),
        "DIR/train_y.bin at byte 1: expected a label from 1 to 10, found 0"
    );
    fs::write(dir.join("train_y.bin"), [1]).unwrap();
    assert_eq!(
        fail(),
        "DIR/train_y.bin: expected 2 labels, one byte for each image of DIR/train_X.bin, found 1"
    );
    fs::write(dir.join("train_X.bin"), &bytes[..30_000]).unwrap();
    assert_eq!(
        fail(),
        "DIR/train_X.bin at byte 27648: expected an image of 27648 bytes, found the end of the file after 2352 bytes"
    );
    fs::write(dir.join("train_X.bin"), []).unwrap();
    assert_eq!(
        fail(),
        "DIR/train_X.bin at byte 0: expected an image of 27648 bytes, found an empty file"
    );
    fs::remove_file(dir.join("train_y.bin")).unwrap();
    fs::write(dir.join("train_X.bin"), &bytes).unwrap();
    assert_eq!(
        fail(),
        format!("DIR/train_y.bin: expected this file beside {holds}, found no such file")
    );
}

// ---- folder ----

fn write_image(path: PathBuf, w: u32, h: u32, colour: [u8; 3]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut image = image::RgbImage::from_pixel(w, h, image::Rgb(colour));
    image.put_pixel(w - 1, 0, image::Rgb([1, 2, 3]));
    image.save(path).unwrap();
}

fn write_folder(dir: &Path) {
    for (name, colour) in [
        ("train/cat/b.png", [10, 20, 30]),
        ("train/cat/a.png", [40, 50, 60]),
        ("train/Zebra/10.png", [70, 80, 90]),
        ("test/cat/x.png", [11, 12, 13]),
        ("test/Zebra/x.png", [14, 15, 16]),
    ] {
        write_image(dir.join(name), 4, 3, colour);
    }
    // What is no image, or hidden, is passed over.
    fs::write(dir.join("train/cat/notes.txt"), "x").unwrap();
    fs::write(dir.join("train/cat/.a.png"), "x").unwrap();
    fs::write(dir.join("train/readme"), "x").unwrap();
}

#[test]
fn folders_are_classes_and_files_are_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path());
    let grey = image::GrayImage::from_fn(4, 3, |x, y| image::Luma([(10 * y + x) as u8]));
    grey.save(dir.path().join("train/Zebra/2.PNG")).unwrap();
    let spec = Spec::Folder(dir.path().into());
    let data = spec.load(Split::Train, 0).unwrap();
    assert_eq!(data.classes(), ["Zebra", "cat"]);
    assert_eq!(data.labels(), [0, 0, 1, 1]);
    assert_eq!(data.image_shape(), Shape::new(1, 3, 4, 3));
    let (images, _) = all(&data);
    let pixel = |n: usize, y: usize, x: usize| {
        let at = ((n * 3 + y) * 4 + x) * 3;
        [0, 1, 2].map(|c| (images[at + c] * 255.0).round() as u8)
    };
    assert_eq!(pixel(0, 2, 1), [70, 80, 90]); // 10.png before 2.PNG: by bytes, not by number
    assert_eq!(pixel(0, 0, 3), [1, 2, 3]);
    assert_eq!(pixel(1, 2, 1), [21, 21, 21]);
    assert_eq!(pixel(2, 1, 1), [40, 50, 60]);
    assert_eq!(pixel(3, 1, 1), [10, 20, 30]);
    assert_eq!(spec.load(Split::Test, 0).unwrap().len(), 2);

    // JPEG is lossy: near is enough.
    fs::remove_file(dir.path().join("train/cat/a.png")).unwrap();
    let flat = image::RgbImage::from_pixel(4, 3, image::Rgb([200, 100, 50]));
    flat.save(dir.path().join("train/cat/a.jpg")).unwrap();
    let (images, _) = all(&spec.load(Split::Train, 0).unwrap());
    for (value, expected) in images[2 * 36..][..3].iter().zip([200.0, 100.0, 50.0]) {
        assert!((value * 255.0 - expected).abs() < 6.0, "{value}");
    }
}

#[test]
fn folder_errors_name_the_first_file_at_fault() {
    let holder = tempfile::tempdir().unwrap();
    let dir = holder.path();
    let fail = || failure("folder:DIR", dir, Split::Train);
    assert_eq!(
        fail(),
        "DIR/train: expected a directory with one folder of images per class, found no such directory"
    );
    fs::create_dir_all(dir.join("train")).unwrap();
    assert_eq!(
        fail(),
        "DIR/train: expected one folder of images for each of two classes or more, found 0 folders"
    );
    write_folder(dir);
    write_image(dir.join("train/dog/a.png"), 4, 3, [0; 3]);
    let same = "the same classes in train and test, so `dog` too";
    assert_eq!(
        fail(),
        format!("DIR/test: expected {same}, found no such folder")
    );
    fs::rename(dir.join("train/dog"), dir.join("test/dog")).unwrap();
    assert_eq!(
        fail(),
        format!("DIR/train: expected {same}, found no such folder")
    );
    fs::remove_dir_all(dir.join("test/dog")).unwrap();

    write_image(dir.join("train/cat/aa.png"), 3, 4, [0; 3]);
    write_image(dir.join("train/cat/c.png"), 5, 5, [0; 3]);
    assert_eq!(
        fail(),
        "DIR/train/cat/aa.png: expected 4x3 pixels, as DIR/train/Zebra/10.png, found 3x4"
    );
    let whole = fs::read(dir.join("train/cat/b.png")).unwrap();
    for len in 0..whole.len() - 12 {
        // All but the last chunk, IEND, is needed.
        fs::write(dir.join("train/cat/aa.png"), &whole[..len]).unwrap();
        let message = fail();
        assert!(
            message.starts_with("DIR/train/cat/aa.png: expected a PNG or JPEG image, found "),
            "{len}: {message}"
        );
    }
    fs::write(dir.join("train/cat/aa.png"), "not an image").unwrap();
    assert!(fail().starts_with("DIR/train/cat/aa.png: expected a PNG or JPEG image, found "));
    for name in ["aa", "a", "b", "c"] {
        fs::remove_file(dir.join(format!("train/cat/{name}.png"))).unwrap();
    }
    assert_eq!(
        fail(),
        "DIR/train/cat: expected at least one .png, .jpg or .jpeg image, found none"
    );
}

// ---- npy ----

#[test]
fn npy_layouts_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let nhwc = all(&counted(dir)).0;
    // The same images as planes.
    let mut planes = vec![0; 36];
    for (i, value) in (0..36u8).enumerate() {
        let (n, y, x, c) = (i / 18, i / 9 % 2, i / 3 % 3, i % 3);
        planes[((n * 3 + c) * 2 + y) * 3 + x] = value;
    }
    // (2, 3, 2, 3) fits both forms and is refused; a width of 2 is not.
    write_npy(&dir.join("x.npy"), "|u1", "(2, 3, 2, 3)", &planes);
    let both = "one axis of 1 or 3, so that (n, h, w, c) and (n, c, h, w) can be told apart";
    let fail = || failure("npy:DIR/x.npy,DIR/y.npy", dir, Split::Test);
    assert_eq!(
        fail(),
        format!("DIR/x.npy: expected {both}, found (2, 3, 2, 3)")
    );

    let narrow: Vec<u8> = (0..2 * 3 * 4 * 2).collect();
    write_npy(&dir.join("x.npy"), "|u1", "(2, 3, 4, 2)", &narrow);
    let data = load_npy(dir);
    assert_eq!(data.image_shape(), Shape::new(1, 4, 2, 3));
    let (images, _) = all(&data);
    for (i, value) in images.iter().enumerate() {
        let (n, y, x, c) = (i / 24, i / 6 % 4, i / 3 % 2, i % 3);
        assert_eq!(
            *value,
            f32::from(narrow[((n * 3 + c) * 4 + y) * 2 + x]) / 255.0
        );
    }

    // Grey floats, and both splits are the whole.
    let floats: Vec<u8> = nhwc.iter().flat_map(|v| v.to_le_bytes()).collect();
    write_npy(&dir.join("x.npy"), "<f4", "(2, 9, 2, 1)", &floats);
    let data = load_npy(dir);
    assert_eq!(data.image_shape(), Shape::new(1, 9, 2, 1));
    assert_eq!(all(&data).0, nhwc);
}

#[test]
fn npy_errors_name_file_index_and_expectation() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let fail = || failure("npy:DIR/x.npy,DIR/y.npy", dir, Split::Test);
    counted(dir);
    let images =
        |descr: &str, shape: &str, data: &[u8]| write_npy(&dir.join("x.npy"), descr, shape, data);
    images("|u1", "(2, 6)", &[0; 12]);
    assert_eq!(
        fail(),
        "DIR/x.npy: expected images of shape (n, h, w, c) or (n, c, h, w), found (2, 6)"
    );
    images("|u1", "(2, 2, 2, 4)", &[0; 32]);
    assert_eq!(
        fail(),
        "DIR/x.npy: expected 1 or 3 channels, as second or as last axis, found (2, 2, 2, 4)"
    );
    images("|u1", "(0, 2, 2, 3)", &[]);
    assert_eq!(
        fail(),
        "DIR/x.npy: expected at least one image, and at least one pixel in it, found (0, 2, 2, 3)"
    );
    images("<i2", "(2, 2, 2, 1)", &[0; 16]);
    assert_eq!(
        fail(),
        "DIR/x.npy: expected images of u8 in 0..255 or f32 in [0, 1], found another integer type"
    );
    for (bad, found) in [
        (1.5f32, "1.5"),
        (-0.1, "-0.1"),
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
    ] {
        let mut values = [0.5f32; 12];
        values[10] = bad;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        images("<f4", "(2, 2, 3, 1)", &bytes);
        assert_eq!(
            fail(),
            format!("DIR/x.npy: expected f32 values in [0, 1], found {found} at [1, 1, 1, 0]")
        );
    }
    counted(dir);

    let labels =
        |descr: &str, shape: &str, data: &[u8]| write_npy(&dir.join("y.npy"), descr, shape, data);
    labels("|u1", "(3,)", &[0; 3]);
    assert_eq!(
        fail(),
        "DIR/y.npy: expected labels of shape (2,), one per image of DIR/x.npy, found (3,)"
    );
    labels("|u1", "(2, 1)", &[0; 2]);
    assert_eq!(
        fail(),
        "DIR/y.npy: expected labels of shape (2,), one per image of DIR/x.npy, found (2, 1)"
    );
    labels("|i1", "(2,)", &[0, 255]);
    assert_eq!(
        fail(),
        "DIR/y.npy: expected labels from 0 to 65535, found -1 at index 1"
    );
    labels("<i4", "(2,)", &70_000i64.to_le_bytes());
    assert_eq!(
        fail(),
        "DIR/y.npy: expected labels from 0 to 65535, found 70000 at index 0"
    );
    labels("<f4", "(2,)", &[0; 8]);
    assert_eq!(
        fail(),
        "DIR/y.npy: expected labels of an integer type, found f32"
    );
    labels("<i8", "(2,)", &[0; 15]);
    assert!(fail().contains("expected 16 bytes of (2,) i8, found 15 bytes"));
    fs::remove_file(dir.join("y.npy")).unwrap();
    assert!(fail().starts_with("cannot read DIR/y.npy: "));

    labels("<i8", "(2,)", &[[2, 0, 0, 0, 0, 0, 0, 0], [0; 8]].concat());
    assert_eq!(load_npy(dir).classes(), ["0", "1", "2"]);
}
