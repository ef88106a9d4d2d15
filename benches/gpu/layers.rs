//! The networks' convolutions on tensor cores, layer by layer: every pass, the noise inside and as an op of
//! its own, and what the model says beside (`noiseforge bench --model`).

use anyhow::Result;
use noiseforge::Shape;
use noiseforge::models::{Arch, Config, Convolution};
use noiseforge::ops::conv2d::model::Card;
use noiseforge::ops::conv2d::predict::{Launch, Pass};
use noiseforge::ops::conv2d::{self, Constant, Input};
use noiseforge::ops::fused_conv2d::{self, Epilogue};
use noiseforge::ops::noise::{self, Normals};
use noiseforge::ops::{add, noisy_conv2d, relu};
use noiseforge::tensor::DType;

use super::{BATCH, Bench, Work, noise_of};

const DTYPE: DType = DType::BF16;
const LARGE_BATCH: usize = 1024;

/// Layers of the large batch: the others are like one of them, and a visit to a GPU is short.
const LARGE: [&str; 5] = [
    "64>64 32x32",
    "128>128 16x16",
    "256>256 8x8",
    "512>512 4x4",
    "512>512 2x2",
];
const LARGE_RESNEXT: [&str; 8] = [
    "64>128 32x32 k1",
    "128>128 32x32 g2",
    "128>256 32x32 k1",
    "256>256 32x32 s2 g2",
    "256>512 32x32 k1 s2",
    "256>256 16x16 g2",
    "512>512 8x8 g2",
    "512>1024 8x8 k1",
];

/// As benches/peers/torch_gpu.py names them.
fn name_of(layer: &Convolution) -> String {
    let mut name = format!("{}>{} {}x{}", layer.x.c, layer.w.n, layer.x.h, layer.x.w);
    let conv = layer.conv;
    for (tag, value, usual) in [
        ("k", layer.w.h, 3),
        ("s", conv.stride, 1),
        ("g", conv.groups, 1),
    ] {
        if value != usual {
            name += &format!(" {tag}{value}");
        }
    }
    name
}

/// Distinct convolutions of a network.
fn distinct(arch: Arch) -> Result<Vec<(String, Convolution)>> {
    let config = Config::new(arch, Shape::new(1, 32, 32, 3), 10);
    let mut found: Vec<(String, Convolution)> = Vec::new();
    for layer in config
        .convolutions()?
        .into_iter()
        .filter(|layer| layer.norm)
    {
        let name = name_of(&layer);
        if !found.iter().any(|(known, _)| *known == name) {
            found.push((name, layer));
        }
    }
    Ok(found)
}

pub fn all(b: &Bench) -> Result<()> {
    for (name, layer) in distinct(Arch::Vgg16)? {
        passes(b, &name, &layer, BATCH)?;
        if LARGE.contains(&name.as_str()) {
            passes(b, &name, &layer, LARGE_BATCH)?;
        }
    }
    for (name, layer) in distinct(Arch::ResNeXt29)? {
        if LARGE_RESNEXT.contains(&name.as_str()) {
            passes(b, &name, &layer, LARGE_BATCH)?;
        }
    }
    Ok(())
}

fn passes(b: &Bench, layer_name: &str, layer: &Convolution, n: usize) -> Result<()> {
    let batch = if n == BATCH {
        String::new()
    } else {
        format!(" batch {n}")
    };
    let name = |what: &str| format!("{what} {layer_name} {DTYPE}{batch}");
    let whats = [
        "conv",
        "noise then conv",
        "noisy conv",
        "conv input grad",
        "conv input grad, sum and gate fused",
        "conv input grad, sum and gate apart",
        "conv weight grad",
        "noisy conv weight grad",
    ];
    if !whats.iter().any(|what| b.wanted(&name(what))) {
        return Ok(());
    }
    let launch = |pass, noise| Launch {
        noise,
        ..layer.launch(pass, DTYPE, n)
    };
    let plain = launch(Pass::Forward, false);
    let (card, tuning) = (Card::of(b.gpu.properties()), b.gpu.tuning());
    let model = |launch: Launch| -> Result<Option<f64>> {
        let prediction = launch.predict(&card, Some(&tuning), None)?;
        Ok(prediction.map(|p| p.times.seconds()))
    };
    let work = Work::Flops(plain.operations()? as usize);
    let (x_shape, conv) = (plain.x, layer.conv);
    let x = b.values(x_shape, DTYPE, 1)?;
    let dy = b.values(plain.y()?, DTYPE, 2)?;
    // Packed once, as PyTorch's 16-bit weights are made once.
    let w = Constant::new(b.values(layer.w, DType::F32, 3)?);
    let mut dw = w.tensor().zeros_like()?;
    let none = Epilogue::default();
    let noise = noise_of(n, Normals::Fast);
    b.modelled(&name("conv"), work, model(plain)?, || {
        fused_conv2d::forward(&x, &w, None, conv, &none)?;
        Ok(())
    })?;
    b.modelled(&name("noise then conv"), work, None, || {
        fused_conv2d::forward(&noise::forward(&x, &noise)?, &w, None, conv, &none)?;
        Ok(())
    })?;
    let noisy = model(launch(Pass::Forward, true))?;
    b.modelled(&name("noisy conv"), work, noisy, || {
        fused_conv2d::forward(Input::noisy(&x, Some(&noise)), &w, None, conv, &none)?;
        Ok(())
    })?;
    let grad = model(launch(Pass::InputGrad, false))?;
    b.modelled(&name("conv input grad"), work, grad, || {
        conv2d::input_grad(&dy, &w, x_shape, conv)?;
        Ok(())
    })?;
    let (_, gate) = relu::forward_mask(x.clone(), None)?;
    let then = conv2d::Then {
        plus: Some(&x),
        gate: Some(&gate),
    };
    b.modelled(
        &name("conv input grad, sum and gate fused"),
        work,
        None,
        || {
            conv2d::input_grad_then(&dy, &w, x_shape, conv, &then)?;
            Ok(())
        },
    )?;
    b.modelled(
        &name("conv input grad, sum and gate apart"),
        work,
        None,
        || {
            let dx = conv2d::input_grad(&dy, &w, x_shape, conv)?;
            relu::backward_mask(add::forward(dx, &x)?, &gate)?;
            Ok(())
        },
    )?;
    b.modelled(&name("conv weight grad"), work, None, || {
        Ok(conv2d::weight_grad(&dy, &x, &mut dw, None, conv)?)
    })?;
    b.modelled(&name("noisy conv weight grad"), work, None, || {
        Ok(noisy_conv2d::weight_grad(
            &dy, &x, &noise, &mut dw, None, conv,
        )?)
    })
}
