//! The stream of random numbers outside the noise layers.

use noiseforge::ops::noise::philox4x32_10;
use noiseforge::rng::Stream;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

#[test]
fn words_are_philox_blocks_under_the_streams_counter() {
    let (seed, tag, index) = (0x1122_3344_5566_7788, 5, 0xAABB_CCDD_0000_0007);
    let mut stream = Stream::new(seed, tag, index);
    for block in 0..3 {
        let counter = [block, 7, 1 << 31 | 5, 0xAABB_CCDD];
        for word in philox4x32_10(counter, [0x5566_7788, 0x1122_3344]) {
            assert_eq!(stream.next_u32(), word);
        }
    }
}

#[test]
fn every_name_gives_its_own_stream_and_the_same_one_again() {
    let first = |seed, tag, index| Stream::new(seed, tag, index).next_u64();
    let names = [
        (0, 0, 0),
        (1, 0, 0),
        (1 << 32, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (0, 0, 1 << 32),
    ];
    for (i, a) in names.iter().enumerate() {
        for (j, b) in names.iter().enumerate() {
            let same = first(a.0, a.1, a.2) == first(b.0, b.1, b.2);
            assert_eq!(same, i == j, "{a:?} {b:?}");
        }
    }
}

#[test]
fn bytes_are_the_words() {
    let mut bytes = [0; 10];
    Stream::new(3, 1, 4).fill_bytes(&mut bytes);
    let mut stream = Stream::new(3, 1, 4);
    assert_eq!(bytes[..4], stream.next_u32().to_le_bytes());
    assert_eq!(bytes[4..8], stream.next_u32().to_le_bytes());
    assert_eq!(bytes[8..], stream.next_u32().to_le_bytes()[..2]);
}

/// Five standard errors; the seed is fixed, so the test always gives the same verdict.
#[test]
fn uniform_and_normal_have_their_moments() {
    let n = 1_000_000;
    let mut stream = Stream::new(11, 2, 0);
    let (mut mean, mut square) = (0.0, 0.0);
    for _ in 0..n {
        let u = stream.uniform();
        assert!((0.0..1.0).contains(&u));
        mean += u / n as f64;
    }
    assert!((mean - 0.5).abs() < 5.0 * (1.0 / 12.0 / n as f64).sqrt());
    mean = 0.0;
    for _ in 0..n {
        let z = stream.normal();
        mean += z / n as f64;
        square += z * z / n as f64;
    }
    assert!(mean.abs() < 5.0 / (n as f64).sqrt());
    assert!((square - 1.0).abs() < 5.0 * (2.0 / n as f64).sqrt());
}

#[test]
fn rand_works_on_it() {
    let shuffled = |index| {
        let mut order: Vec<usize> = (0..100).collect();
        order.shuffle(&mut Stream::new(1, 2, index));
        order
    };
    assert_eq!(shuffled(0), shuffled(0));
    assert_ne!(shuffled(0), shuffled(1));
    let mut sorted = shuffled(1);
    sorted.sort_unstable();
    assert!(sorted.into_iter().eq(0..100));
    assert!((3..9).contains(&Stream::new(1, 2, 3).random_range(3..9)));
}
