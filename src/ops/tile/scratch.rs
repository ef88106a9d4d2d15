//! Working memory that a thread keeps between calls: fresh pages cost more than the copies
//! that fill them.

use std::cell::RefCell;

use super::Element;

/// One cache line, the unit of allocation, so that packed vectors never straddle lines.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// What a buffer is for; each purpose has its own per thread.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// Packed weights, filled by the calling thread and read by all.
    Weights = 0,
    /// One task's input.
    Patch = 1,
    /// Partial sums of a weight gradient.
    Partial = 2,
    /// One row on its way into a patch.
    Stage = 3,
}

thread_local! {
    static KEPT: RefCell<[Vec<Line>; 4]> = const { RefCell::new([const { Vec::new() }; 4]) };
}

/// A buffer aligned to cache lines. Its content is whatever the last user left.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    purpose: Purpose,
}

impl Scratch {
    /// This thread's buffer for `purpose`. While it is out, a second one is fresh: a thread that
    /// waits for its tasks may be lent to another op.
    pub fn take(purpose: Purpose) -> Self {
        let lines = KEPT.with_borrow_mut(|kept| std::mem::take(&mut kept[purpose as usize]));
        Scratch { lines, purpose }
    }

    /// The first `len` elements.
    pub fn get<T: Element>(&mut self, len: usize) -> &mut [T] {
        let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        if self.lines.len() < lines {
            self.lines = vec![Line([0; 64]); lines];
        }
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..len]
    }

    /// Everything [`Scratch::get`] has given out, and maybe more.
    pub fn filled<T: Element>(&self) -> &[T] {
        bytemuck::cast_slice(&self.lines)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // At thread exit the store may be gone already; then the buffer just goes too.
        let _ = KEPT.try_with(|kept| kept.borrow_mut()[self.purpose as usize] = lines);
    }
}
