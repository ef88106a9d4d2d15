//! A captured sequence of launches, replayed by one call.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaGraph, sys};

use super::Gpu;
use super::memory::Arena;
use crate::error::Result;

/// Launches and copies within the device, recorded once.
///
/// Everything it works on must outlive it: what it allocated does (the graph holds it), buffers that
/// were there before are its owner's to keep in place.
pub struct Graph {
    gpu: Gpu,
    graph: CudaGraph,
    _arena: Arc<Arena>,
}

// SAFETY: the graph is launched through `&self` on the device's one stream, from one thread at a
// time because its owners are not shared; the driver allows any thread.
unsafe impl Send for Graph {}

impl Gpu {
    /// Records what `work` asks of the device, without doing it, and returns its result.
    ///
    /// `work` must neither read results nor upload: nothing has run when it returns.
    ///
    /// Errors: what `work` returns; the driver refuses the graph.
    pub fn capture<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<(Graph, R)> {
        self.bind()?;
        let arena = self.begin_arena();
        let stream = &self.0.stream;
        // Relaxed: the pool may have to ask the driver for memory while work is recorded.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        let begun = stream.begin_capture(mode);
        let worked = match begun {
            Ok(()) => work(),
            Err(e) => Err(self.fault("beginning a graph", e)),
        };
        // Also after an error: the stream must not stay in capture.
        let ended = match begun {
            Ok(()) => stream.end_capture(sys::CUgraphInstantiate_flags(0)),
            Err(_) => Ok(None),
        };
        self.end_arena();
        let result = worked?;
        let graph = ended
            .map_err(|e| self.fault("building a graph", e))?
            .expect("a stream in capture gives a graph");
        let graph = Graph {
            gpu: self.clone(),
            graph,
            _arena: arena,
        };
        Ok((graph, result))
    }
}

impl Graph {
    /// Does what was recorded, behind everything asked of the device before.
    ///
    /// Errors: the driver refuses the launch.
    pub fn launch(&self) -> Result<()> {
        self.gpu.bind()?;
        let launched = self.graph.launch();
        launched.map_err(|e| self.gpu.fault("launching a graph", e))?;
        if self.gpu.0.options.synchronous {
            let done = self.gpu.0.stream.synchronize();
            done.map_err(|e| self.gpu.fault("a graph", e))?;
        }
        Ok(())
    }
}

/// How long the host lets the device run ahead of it before it looks how the work stands.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Work that is repeated step by step: done as it is the first time (kernels load, the pool takes
/// its memory), recorded the second time, replayed from then on.
#[derive(Default)]
pub(crate) enum Repeated {
    #[default]
    New,
    Warm,
    Recorded(Graph),
}

impl Repeated {
    /// Does the work once more. Returns whether it was replayed, so that `work` was not called.
    ///
    /// Errors: what `work` returns; the driver refuses the graph.
    pub fn run(&mut self, gpu: &Gpu, work: impl FnOnce() -> Result<()>) -> Result<bool> {
        match self {
            Repeated::New => {
                work()?;
                *self = Repeated::Warm;
            }
            Repeated::Warm => {
                let (graph, ()) = gpu.capture(work)?;
                graph.launch()?;
                *self = Repeated::Recorded(graph);
            }
            Repeated::Recorded(graph) => {
                graph.launch()?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}
