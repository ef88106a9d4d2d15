//! Networks to and from checkpoints: PyTorch's names and layouts, the network's own description in
//! the metadata.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use super::{Config, Model, NoisePlacement};
use crate::error::{Error, Result};
use crate::io::checkpoint::{
    Array, ArrayData, ArrayType, Checkpoint, Slot, conv_from_oihw, conv_to_oihw, linear_from_oi,
    linear_to_oi, vector_from_array, vector_to_array,
};
use crate::nn::{Entry, Layout};
use crate::tensor::{Shape, Tensor};

/// A tensor of ours in PyTorch's layout.
pub(crate) fn to_array(tensor: &Tensor, layout: Layout) -> Result<Array> {
    let tensor = &tensor.to_cpu()?;
    Ok(match layout {
        Layout::Oihw => conv_to_oihw(tensor),
        Layout::Matrix => linear_to_oi(tensor),
        Layout::Vector => vector_to_array(tensor),
        Layout::Flattened { h, w, c } => {
            let s = tensor.shape();
            let unflattened = tensor.clone().reshape(Shape::new(s.n, h, w, c));
            let array = conv_to_oihw(&unflattened.expect("layout fits the tensor"));
            Array {
                shape: vec![s.n, s.row_len()],
                ..array
            }
        }
    })
}

/// The sizes [`to_array`] gives a tensor of this shape.
fn array_shape(s: Shape, layout: Layout) -> Vec<usize> {
    match layout {
        Layout::Oihw => vec![s.n, s.c, s.h, s.w],
        Layout::Matrix | Layout::Flattened { .. } => vec![s.n, s.row_len()],
        Layout::Vector => vec![s.len()],
    }
}

/// Overwrites a tensor by an array, where it lies and in its type.
pub(crate) fn put_array(tensor: &mut Tensor, array: &Array, layout: Layout) -> Result<()> {
    let dtype = tensor.dtype();
    tensor.copy_from(&from_array(array, layout)?.to_dtype(dtype)?)
}

/// Inverse of [`to_array`].
pub(crate) fn from_array(array: &Array, layout: Layout) -> Result<Tensor> {
    match layout {
        Layout::Oihw => conv_from_oihw(array),
        Layout::Matrix => linear_from_oi(array),
        Layout::Vector => vector_from_array(array),
        Layout::Flattened { h, w, c } => {
            let out = array.shape.first().copied().unwrap_or(0);
            let unflattened = Array {
                shape: vec![out, c, h, w],
                data: array.data.clone(),
            };
            conv_from_oihw(&unflattened)?.reshape(Shape::new(out, 1, 1, h * w * c))
        }
    }
}

/// An error for a running variance below 0. Here and not where a GPU normalises with it, which would
/// have to wait for the values.
fn check_variances(path: &Path, checkpoint: &Checkpoint) -> Result<()> {
    for (name, array) in &checkpoint.tensors {
        let ArrayData::F32(values) = &array.data else {
            continue;
        };
        let negative = values.iter().position(|&v| v < 0.0);
        if let Some(channel) = negative.filter(|_| name.ends_with(".running_var")) {
            let expected = format_args!("variances of at least 0 in `{name}`");
            let found = format_args!("{} in channel {channel}", values[channel]);
            return Err(Error::file(path, expected, found));
        }
    }
    Ok(())
}

impl Config {
    /// The description as it stands in a checkpoint's metadata.
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let Shape { h, w, c, .. } = self.input;
        let cap = self.relu_cap.map_or("none".to_string(), |c| c.to_string());
        [
            ("format", "pt".to_string()),
            ("model", self.arch.to_string()),
            ("input", format!("{h},{w},{c}")),
            ("classes", self.classes.to_string()),
            ("width", self.width.to_string()),
            ("cardinality", self.cardinality.to_string()),
            ("init_noise", self.init_noise.to_string()),
            ("inner_noise", self.inner_noise.to_string()),
            ("noise_placement", self.placement.to_string()),
            ("noise_at_test", self.noise_at_test.to_string()),
            ("relu_cap", cap),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_string(), v))
        .collect()
    }

    /// The description in a checkpoint's metadata; `None` if it names no model (the file comes from
    /// another program). Errors name the file and the key that is missing or malformed.
    pub fn from_metadata(
        path: &Path,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Option<Config>> {
        if !metadata.contains_key("model") {
            return Ok(None);
        }
        let text = |key: &str| {
            metadata.get(key).ok_or_else(|| {
                Error::file(path, format_args!("metadata key `{key}`"), "no such key")
            })
        };
        fn parse<T: FromStr>(path: &Path, key: &str, value: &str) -> Result<T> {
            value.parse().map_err(|_| {
                Error::file(
                    path,
                    format_args!("a valid metadata value for `{key}`"),
                    format_args!("`{value}`"),
                )
            })
        }
        let sizes: Vec<usize> = text("input")?
            .split(',')
            .map(|v| parse(path, "input", v))
            .collect::<Result<_>>()?;
        let &[h, w, c] = &sizes[..] else {
            return Err(Error::file(
                path,
                "metadata `input` as h,w,c",
                text("input")?,
            ));
        };
        let cap = text("relu_cap")?;
        Ok(Some(Config {
            arch: text("model")?.parse()?,
            input: Shape::new(1, h, w, c),
            classes: parse(path, "classes", text("classes")?)?,
            width: parse(path, "width", text("width")?)?,
            cardinality: parse(path, "cardinality", text("cardinality")?)?,
            init_noise: parse(path, "init_noise", text("init_noise")?)?,
            inner_noise: parse(path, "inner_noise", text("inner_noise")?)?,
            placement: text("noise_placement")?.parse::<NoisePlacement>()?,
            noise_at_test: parse(path, "noise_at_test", text("noise_at_test")?)?,
            relu_cap: match cap.as_str() {
                "none" => None,
                cap => Some(parse(path, "relu_cap", cap)?),
            },
        }))
    }
}

impl Model {
    /// The weights and statistics under PyTorch's names, and the network's description.
    ///
    /// Errors: a fault of the device the network is on.
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let mut tensors = BTreeMap::new();
        let mut result = Ok(());
        self.visit(|name, entry| {
            let array = match entry {
                Entry::Param(p, layout) => to_array(&p.value, layout),
                Entry::Buffer(t, layout) => to_array(t, layout),
                Entry::Count(n) => Ok(Array::counter(*n as i64)),
            };
            match array {
                Ok(array) => drop(tensors.insert(name.to_string(), array)),
                Err(e) => result = Err(e),
            }
        });
        result.map(|()| Checkpoint {
            tensors,
            metadata: self.config.to_metadata(),
        })
    }

    /// Takes weights and statistics from a checkpoint. An error names `path` and the first tensor
    /// that is missing, too many, of another shape or a variance below 0; nothing is changed then.
    /// `num_batches_tracked` may be missing.
    pub fn load_checkpoint(&mut self, path: &Path, checkpoint: &Checkpoint) -> Result<()> {
        let mut slots = Vec::new();
        self.visit(|name, entry| {
            let (shape, dtype, required) = match entry {
                Entry::Param(p, l) => (array_shape(p.value.shape(), l), ArrayType::F32, true),
                Entry::Buffer(t, l) => (array_shape(t.shape(), l), ArrayType::F32, true),
                Entry::Count(_) => (Vec::new(), ArrayType::I64, false),
            };
            slots.push(Slot {
                name: name.to_string(),
                shape,
                dtype,
                required,
            });
        });
        checkpoint.expect(path, &slots)?;
        check_variances(path, checkpoint)?;

        let mut result = Ok(());
        let put = |name: &str, entry: Entry<'_>| -> Result<()> {
            let Some(array) = checkpoint.tensors.get(name) else {
                return Ok(());
            };
            match entry {
                Entry::Param(p, layout) => put_array(&mut p.value, array, layout)?,
                Entry::Buffer(t, layout) => put_array(t, array, layout)?,
                Entry::Count(n) => {
                    if let ArrayData::I64(v) = &array.data {
                        *n = v[0].max(0) as u64;
                    }
                }
            }
            Ok(())
        };
        self.visit(|name, entry| {
            if result.is_ok() {
                result = put(name, entry);
            }
        });
        result
    }

    /// Reads a checkpoint file. `describe` completes the network's description from what the
    /// metadata says (`None` for a file of another program).
    pub fn read(
        path: &Path,
        describe: impl FnOnce(Option<Config>) -> Result<Config>,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::read(path)?;
        let config = Config::from_metadata(path, &checkpoint.metadata)?;
        let mut model = Model::new(describe(config)?, 0)?;
        model.load_checkpoint(path, &checkpoint)?;
        Ok(model)
    }
}
