//! The rows of a batch by name, on the host or on a GPU.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::gpu::{Buffer, Elem, Element, Gpu, Ptr};

/// Which random variables one row of a batch sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Row {
    /// The image's index in its data set or, in training, in the global batch.
    pub id: u32,
    /// The training step, or the index of the ensemble's or attack's draw.
    pub draw: u32,
}

impl Element for Row {
    const ELEM: Elem = Elem::Struct("Row");
}

/// One [`Row`] for every row of a batch. A clone is the same list.
///
/// Lists from the host dereference to a slice and are uploaded when a GPU first asks for them. Lists
/// made on a device ([`Rows::on_device`]) stay there: the steps of a graph change them in place.
#[derive(Clone)]
pub struct Rows(Arc<Inner>);

struct Inner {
    len: usize,
    host: Option<Box<[Row]>>,
    device: Mutex<Option<Arc<Buffer<Row>>>>,
}

impl Rows {
    /// A list that only the device knows.
    pub fn on_device(rows: Arc<Buffer<Row>>) -> Self {
        Rows(Arc::new(Inner {
            len: rows.len(),
            host: None,
            device: Mutex::new(Some(rows)),
        }))
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// The list as the host knows it.
    pub fn host(&self) -> Option<&[Row]> {
        self.0.host.as_deref()
    }

    /// The list as it stands, wherever it lies. Waits for the device.
    ///
    /// Errors: a fault of the device.
    pub fn to_host(&self) -> Result<Vec<Row>> {
        if let Some(host) = self.host() {
            return Ok(host.to_vec());
        }
        let device = self.0.device.lock().unwrap_or_else(|e| e.into_inner());
        let buffer = device
            .as_ref()
            .expect("a list is on the host or on a device");
        buffer.to_vec()
    }

    /// The list on a GPU; the first call uploads it, and the next ones until another GPU asks.
    ///
    /// Errors: not enough device memory; a list made on another device.
    pub(crate) fn ptr(&self, gpu: &Gpu) -> Result<Ptr> {
        let mut device = self.0.device.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(buffer) = &*device
            && buffer.gpu() == gpu
        {
            return Ok(buffer.ptr());
        }
        let Some(host) = &self.0.host else {
            let expected = format_args!("a list on {gpu:?}");
            return Err(Error::argument(
                "noise",
                "key.rows",
                expected,
                "one on another device",
            ));
        };
        let buffer = device.insert(Arc::new(gpu.upload(host)?));
        Ok(buffer.ptr())
    }
}

impl Deref for Rows {
    type Target = [Row];

    /// Panics for a list made on a device: ops on the CPU never meet one.
    fn deref(&self) -> &[Row] {
        self.host().expect("the list was made on a device")
    }
}

impl From<Box<[Row]>> for Rows {
    fn from(rows: Box<[Row]>) -> Self {
        Rows(Arc::new(Inner {
            len: rows.len(),
            host: Some(rows),
            device: Mutex::new(None),
        }))
    }
}

impl From<Vec<Row>> for Rows {
    fn from(rows: Vec<Row>) -> Self {
        rows.into_boxed_slice().into()
    }
}

impl From<&[Row]> for Rows {
    fn from(rows: &[Row]) -> Self {
        Box::<[Row]>::from(rows).into()
    }
}

impl<const N: usize> From<[Row; N]> for Rows {
    fn from(rows: [Row; N]) -> Self {
        Box::<[Row]>::from(rows).into()
    }
}

impl FromIterator<Row> for Rows {
    fn from_iter<I: IntoIterator<Item = Row>>(rows: I) -> Self {
        rows.into_iter().collect::<Box<[Row]>>().into()
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host() {
            Some(rows) => rows.fmt(f),
            None => write!(f, "{} rows on a device", self.len()),
        }
    }
}

impl PartialEq for Rows {
    fn eq(&self, other: &Self) -> bool {
        match (self.host(), other.host()) {
            (Some(a), Some(b)) => a == b,
            _ => Arc::ptr_eq(&self.0, &other.0),
        }
    }
}

impl Eq for Rows {}
