//! Time between two points of the stream, by the device's own clock.

use cudarc::driver::{CudaEvent, sys};

use super::Gpu;
use crate::error::Result;

/// A stopwatch on the device.
pub struct Timer {
    gpu: Gpu,
    start: CudaEvent,
    end: CudaEvent,
}

impl Timer {
    /// A stopwatch that has not run.
    ///
    /// Errors: the driver refuses the events.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        gpu.bind()?;
        let event = || {
            let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
            let event = gpu.0.context.new_event(timing);
            event.map_err(|e| gpu.fault("making an event", e))
        };
        Ok(Timer {
            start: event()?,
            end: event()?,
            gpu: gpu.clone(),
        })
    }

    /// Seconds the device takes for what `work` asks of it. Waits for it.
    ///
    /// Errors: what `work` returns; a fault of the device.
    pub fn time(&self, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        let failed = |e| self.gpu.fault("timing", e);
        self.gpu.bind()?;
        self.start.record(&self.gpu.0.stream).map_err(failed)?;
        work()?;
        self.gpu.bind()?;
        self.end.record(&self.gpu.0.stream).map_err(failed)?;
        Ok(f64::from(self.start.elapsed_ms(&self.end).map_err(failed)?) / 1e3)
    }
}
