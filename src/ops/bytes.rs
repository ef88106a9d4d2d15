//! A list of bytes beside a tensor, on the host or on a GPU: what backward needs of forward.

use std::sync::Arc;

use crate::error::Result;
use crate::gpu::{Buffer, Gpu, Ptr};

/// Bytes that lie where their tensor does. A clone is the same list.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    /// In the host's memory.
    Host(Arc<[u8]>),
    /// On a GPU.
    Device(Arc<Buffer<u8>>),
}

impl Bytes {
    pub fn len(&self) -> usize {
        match self {
            Bytes::Host(bytes) => bytes.len(),
            Bytes::Device(bytes) => bytes.len(),
        }
    }

    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Bytes::Host(_) => None,
            Bytes::Device(bytes) => Some(bytes.gpu()),
        }
    }

    /// The bytes. Waits for the device.
    pub fn to_vec(&self) -> Result<Vec<u8>> {
        match self {
            Bytes::Host(bytes) => Ok(bytes.to_vec()),
            Bytes::Device(bytes) => bytes.to_vec(),
        }
    }

    /// Panics on a GPU: the op checks first.
    pub fn host(&self) -> &[u8] {
        match self {
            Bytes::Host(bytes) => bytes,
            Bytes::Device(_) => panic!("the bytes lie on a GPU"),
        }
    }

    /// Panics on the CPU: the op checks first.
    pub fn ptr(&self) -> Ptr {
        match self {
            Bytes::Host(_) => panic!("the bytes lie on the CPU"),
            Bytes::Device(bytes) => bytes.ptr(),
        }
    }

    /// ` on cuda:0`, or nothing: for messages.
    pub fn place(gpu: Option<&Gpu>) -> String {
        match gpu {
            Some(gpu) => format!(" on cuda:{}", gpu.ordinal()),
            None => String::new(),
        }
    }
}
