//! The layers of each network, under the names PyTorch users know them by.

use super::builder::{Builder, ConvSpec, Norm, Sizes};
use super::{Arch, Config, Convolution};
use crate::error::{Error, Result};
use crate::nn::{Block, ConvBlock, Flatten, GlobalAverage, Layer, Layout, Residual};
use crate::ops::conv2d::Conv2d;
use crate::tensor::Shape;

/// The layers, and what their convolutions work on.
pub(super) fn build(config: &Config, seed: u64) -> Result<(Vec<Box<dyn Layer>>, Sizes)> {
    let built = built(config, seed)?;
    Ok((built.layers, built.sizes))
}

/// The convolutions and linear layers of a network.
pub(super) fn convolutions(config: &Config) -> Result<Vec<Convolution>> {
    Ok(built(config, 0)?.convolutions)
}

fn built(config: &Config, seed: u64) -> Result<Builder<'_>> {
    let mut b = Builder::new(config, seed);
    match config.arch {
        Arch::Vgg16 => vgg16(&mut b, config)?,
        Arch::ResNeXt29 => resnext29(&mut b, config)?,
        Arch::PreActResNet18 => preactresnet18(&mut b, config)?,
        Arch::ModelA => model_a(&mut b, config)?,
        Arch::Small => small(&mut b, config)?,
        Arch::Linear => {
            let noise = b.noise();
            b.push(noise);
            b.push(Flatten::default());
            b.dense("classifier", config.classes, Layout::Matrix, false);
        }
    }
    Ok(b)
}

/// One 3x3 convolution of a plain network: output channels, padding, max-pooling behind it.
struct Stage(usize, usize, bool);

/// Convolution stages under torchvision's numbering of the list conv, batch norm, ReLU, [pool].
fn features(b: &mut Builder<'_>, stages: &[Stage], norm: Norm) -> Result<()> {
    let mut index = 0;
    for &Stage(c_out, pad, pool) in stages {
        let block = b.conv(ConvSpec {
            name: &format!("features.{index}"),
            norm_name: &format!("features.{}", index + 1),
            c_out,
            k: 3,
            geometry: Conv2d {
                stride: 1,
                pad,
                groups: 1,
            },
            bias: true,
            norm,
            activation: true,
            pool,
        })?;
        b.push(block);
        index += if pool { 4 } else { 3 };
    }
    Ok(())
}

/// An error unless only one pixel is left: the head is a linear layer on it.
fn one_pixel(b: &Builder<'_>, config: &Config, expected: &str) -> Result<()> {
    if b.shape.h != 1 || b.shape.w != 1 {
        return Err(Error::argument(
            "Model::new",
            "input",
            expected,
            config.input,
        ));
    }
    Ok(())
}

/// 64, 64, M, 128, 128, M, 256 x 3, M, 512 x 3, M, 512 x 3, M; linear 512 to classes.
fn vgg16(b: &mut Builder<'_>, config: &Config) -> Result<()> {
    let w = config.width;
    let mut stages = Vec::new();
    for (c, depth) in [(w, 2), (2 * w, 2), (4 * w, 3), (8 * w, 3), (8 * w, 3)] {
        stages.extend((0..depth).map(|i| Stage(c, 1, i + 1 == depth)));
    }
    features(b, &stages, Norm::Affine)?;
    one_pixel(b, config, "images of 32 to 63 pixels a side for vgg16")?;
    b.dense("classifier", config.classes, Layout::Matrix, false);
    Ok(())
}

/// 32, M, 64, M, 128, M, 128, M, 256 (no padding), 256 (no padding), M; linear 256 to classes.
fn model_a(b: &mut Builder<'_>, config: &Config) -> Result<()> {
    let w = config.width;
    let stages = [
        Stage(w, 1, true),
        Stage(2 * w, 1, true),
        Stage(4 * w, 1, true),
        Stage(4 * w, 1, true),
        Stage(8 * w, 0, false),
        Stage(8 * w, 0, true),
    ];
    features(b, &stages, Norm::Plain)?;
    one_pixel(b, config, "images of 96 to 127 pixels a side for model-a")?;
    b.dense("classifier.0", config.classes, Layout::Matrix, false);
    Ok(())
}

/// 32, 32, M, 64, 64, M; linear to 128, ReLU, linear to classes.
fn small(b: &mut Builder<'_>, config: &Config) -> Result<()> {
    let w = config.width;
    let stages = [
        Stage(w, 1, false),
        Stage(w, 1, true),
        Stage(2 * w, 1, false),
        Stage(2 * w, 1, true),
    ];
    features(b, &stages, Norm::Affine)?;
    b.push(Flatten::default());
    let Shape { h, w: width, c, .. } = b.shape;
    let flattened = Layout::Flattened { h, w: width, c };
    b.dense("classifier.0", 4 * w, flattened, true);
    b.dense("classifier.2", config.classes, Layout::Matrix, false);
    Ok(())
}

/// 1x1 stem, three stages of three bottlenecks, global average, linear 16 x width to classes.
fn resnext29(b: &mut Builder<'_>, config: &Config) -> Result<()> {
    let stem = b.conv(ConvSpec {
        name: "conv1",
        norm_name: "bn1",
        c_out: 64,
        k: 1,
        geometry: Builder::same(1),
        bias: false,
        norm: Norm::Affine,
        activation: true,
        pool: false,
    })?;
    b.push(stem);
    for stage in 0..3 {
        let group_width = (config.cardinality * config.width) << stage;
        for index in 0..3 {
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            let name = format!("layer{}.{index}", stage + 1);
            let block = bottleneck(b, &name, group_width, config.cardinality, stride)?;
            b.push(block);
        }
    }
    b.push(GlobalAverage::default());
    b.shape = Shape::vector(b.shape.c);
    b.dense("linear", config.classes, Layout::Matrix, false);
    Ok(())
}

/// 1x1, grouped 3x3 (carries the stride), 1x1 to twice the group width, projection if shapes differ.
fn bottleneck(
    b: &mut Builder<'_>,
    name: &str,
    group_width: usize,
    groups: usize,
    stride: usize,
) -> Result<Residual> {
    let input = b.shape;
    let out = 2 * group_width;
    let conv = |b: &mut Builder<'_>, conv: &str, norm: &str, c_out, k, stride, groups, act| {
        b.conv(ConvSpec {
            name: &format!("{name}.{conv}"),
            norm_name: &format!("{name}.{norm}"),
            c_out,
            k,
            geometry: Conv2d {
                stride,
                pad: k / 2,
                groups,
            },
            bias: false,
            norm: Norm::Affine,
            activation: act,
            pool: false,
        })
    };
    let body: Vec<Box<dyn Block>> = vec![
        Box::new(conv(b, "conv1", "bn1", group_width, 1, 1, 1, true)?),
        Box::new(conv(
            b,
            "conv2",
            "bn2",
            group_width,
            3,
            stride,
            groups,
            true,
        )?),
        // Its activation follows the residual.
        Box::new(conv(b, "conv3", "bn3", out, 1, 1, 1, true)?),
    ];
    b.add_residual();
    let output = b.shape;
    let shortcut: Option<Box<dyn Block>> = if stride != 1 || input.c != out {
        b.shape = input;
        let block = conv(b, "shortcut.0", "shortcut.1", out, 1, stride, 1, false)?;
        debug_assert_eq!(b.shape, output);
        Some(Box::new(block))
    } else {
        None
    };
    Ok(Residual::new(body, shortcut))
}

/// 3x3 stem, four stages of two blocks with pre-activation, global average, linear 8 x width to classes.
fn preactresnet18(b: &mut Builder<'_>, config: &Config) -> Result<()> {
    let w = config.width;
    let stem = plain(b, "conv1", w, 3, 1)?;
    b.push(stem);
    for stage in 0..4 {
        for index in 0..2 {
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            let name = format!("layer{}.{index}", stage + 1);
            pre_activated(b, &name, w << stage, stride)?;
        }
    }
    b.push(GlobalAverage::default());
    b.shape = Shape::vector(b.shape.c);
    b.dense("linear", config.classes, Layout::Matrix, false);
    Ok(())
}

/// Nothing but a convolution.
fn plain(
    b: &mut Builder<'_>,
    name: &str,
    c_out: usize,
    k: usize,
    stride: usize,
) -> Result<ConvBlock> {
    b.conv(ConvSpec {
        name,
        norm_name: "",
        c_out,
        k,
        geometry: Conv2d {
            stride,
            pad: k / 2,
            groups: 1,
        },
        bias: false,
        norm: Norm::None,
        activation: false,
        pool: false,
    })
}

/// Batch norm and ReLU, 3x3 (carries the stride), batch norm and ReLU, 3x3. The shortcut is the input
/// itself; where shapes differ it is a projection of what the first ReLU gives, which then stands in front
/// of both branches.
fn pre_activated(b: &mut Builder<'_>, name: &str, c_out: usize, stride: usize) -> Result<()> {
    let pre = b.norm_block(&format!("{name}.bn1"));
    let input = b.shape;
    let first = b.conv(ConvSpec {
        name: &format!("{name}.conv1"),
        norm_name: &format!("{name}.bn2"),
        c_out,
        k: 3,
        geometry: Conv2d {
            stride,
            ..Builder::same(3)
        },
        bias: false,
        norm: Norm::Affine,
        activation: true,
        pool: false,
    })?;
    let second = plain(b, &format!("{name}.conv2"), c_out, 3, 1)?;
    b.add_residual();
    let output = b.shape;
    let residual = if stride != 1 || input.c != c_out {
        b.shape = input;
        let shortcut = plain(b, &format!("{name}.shortcut.0"), c_out, 1, stride)?;
        debug_assert_eq!(b.shape, output);
        b.push(pre);
        Residual::new(
            vec![Box::new(first), Box::new(second)],
            Some(Box::new(shortcut)),
        )
    } else {
        let body: Vec<Box<dyn Block>> = vec![Box::new(pre), Box::new(first), Box::new(second)];
        Residual::new(body, None)
    };
    b.push(residual);
    Ok(())
}
