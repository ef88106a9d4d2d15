//! Results that are first touched by the tasks that compute them: zeroing a large vector on one
//! thread beforehand would take a tenth of a convolution's time.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Element;

/// A part of a vector that nobody has written yet.
pub(crate) struct Unset<'a, T> {
    slots: &'a mut [MaybeUninit<T>],
    zeroed: &'a AtomicUsize,
}

impl<'a, T: Element> Unset<'a, T> {
    /// The first `len` elements and the rest.
    pub fn split_at(self, len: usize) -> (Self, Self) {
        let zeroed = self.zeroed;
        let (first, rest) = self.slots.split_at_mut(len);
        let part = |slots| Unset { slots, zeroed };
        (part(first), part(rest))
    }

    /// Sets all elements to 0.
    pub fn zero(self) -> &'a mut [T] {
        self.slots.fill(MaybeUninit::new(T::zero()));
        self.zeroed.fetch_add(self.slots.len(), Ordering::Relaxed);
        // SAFETY: all slots have just been written, and a slot of T is laid out as a T.
        unsafe { &mut *(std::ptr::from_mut(self.slots) as *mut [T]) }
    }
}

/// A vector of `len` elements, every one of which `fill` zeroes, in whatever parts and on
/// whatever threads, before it writes results.
pub(crate) fn collect<T: Element>(len: usize, fill: impl FnOnce(Unset<'_, T>)) -> Vec<T> {
    let mut vec = Vec::with_capacity(len);
    let zeroed = AtomicUsize::new(0);
    fill(Unset {
        slots: &mut vec.spare_capacity_mut()[..len],
        zeroed: &zeroed,
    });
    assert_eq!(zeroed.into_inner(), len, "parts left unset");
    // SAFETY: parts are disjoint and each is zeroed at most once, so that `len` zeroed elements
    // are all of the first `len`; the borrows of the parts have ended.
    unsafe { vec.set_len(len) };
    vec
}
