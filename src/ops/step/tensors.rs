//! All parameters of a network as one table, so that an optimiser is one launch.

use crate::error::{Error, Result};
use crate::gpu::kernels::Piece;
use crate::gpu::{Buffer, Gpu, Ptr};
use crate::tensor::{DType, Tensor};

/// Elements of a piece: one block's work.
const PIECE: usize = 4096;

/// Where parameters, gradients and optimiser state lie.
#[derive(Default)]
pub struct Slots {
    gpu: Option<Gpu>,
    /// Pieces by address: w, grad, first, second (0 without), elements.
    pieces: Vec<[u64; 5]>,
    /// Whether there is a second moment.
    two: bool,
}

impl Slots {
    /// Adds a parameter with its gradient and the state of its optimiser: SGD's velocity, or Adam's
    /// two moments. All are f32 of one shape on one GPU, of which nobody else holds a copy.
    ///
    /// Errors: a tensor does not fit `w`, is not f32 or not on the GPU of the others; one parameter with
    /// a second moment, another without; a shared tensor cannot be copied.
    pub fn push(
        &mut self,
        w: &mut Tensor,
        grad: &mut Tensor,
        first: &mut Tensor,
        second: Option<&mut Tensor>,
    ) -> Result<()> {
        const OP: &str = "Slots::push";
        let gpu = w.expect_gpu(OP, "w")?.clone();
        if self.gpu.get_or_insert_with(|| gpu.clone()) != &gpu {
            let expected = format_args!("a tensor on {:?}, as the others", self.gpu);
            return Err(Error::argument(OP, "w", expected, format_args!("{gpu:?}")));
        }
        let two = second.is_some();
        if !self.pieces.is_empty() && self.two != two {
            let state = |two| if two { "two moments" } else { "one" };
            let (expected, found) = (state(self.two), state(two));
            return Err(Error::argument(OP, "second", expected, found));
        }
        self.two = two;
        let (shape, kind) = (w.shape(), w.kind().with(DType::F32));
        let mut addresses = [0; 4];
        let tensors = [
            ("w", Some(w)),
            ("grad", Some(grad)),
            ("first", Some(first)),
            ("second", second),
        ];
        for (address, (arg, t)) in addresses.iter_mut().zip(tensors) {
            if let Some(t) = t {
                t.expect(OP, arg, shape, kind)?;
                *address = t.ptr_mut()?.address;
            }
        }
        for start in (0..shape.len()).step_by(PIECE) {
            let at = |address: u64| match address {
                0 => 0,
                _ => address + (start * size_of::<f32>()) as u64,
            };
            let [w, grad, first, second] = addresses.map(at);
            let len = PIECE.min(shape.len() - start) as u64;
            self.pieces.push([w, grad, first, second, len]);
        }
        Ok(())
    }
}

impl PartialEq for Slots {
    /// Whether both name the same memory.
    fn eq(&self, other: &Self) -> bool {
        self.gpu == other.gpu && self.pieces == other.pieces
    }
}

/// The table on the device. It holds addresses: the tensors must stay where they are while it is used,
/// which [`MultiTensor::is_for`] tells.
pub struct MultiTensor {
    slots: Slots,
    table: Buffer<Piece>,
}

impl MultiTensor {
    /// Uploads the table.
    ///
    /// Errors: no element at all; more than 2^31 pieces; not enough device memory.
    pub fn new(slots: Slots) -> Result<Self> {
        const OP: &str = "MultiTensor::new";
        let count = slots.pieces.len();
        let (Some(gpu), 1..=0x7fff_ffff) = (&slots.gpu, count) else {
            let expected = "1 to 2^31 - 1 pieces of 4096 elements";
            return Err(Error::argument(OP, "slots", expected, count));
        };
        let piece = |&[w, grad, first, second, len]: &[u64; 5]| Piece {
            w,
            grad,
            first,
            second,
            len,
        };
        let pieces: Vec<Piece> = slots.pieces.iter().map(piece).collect();
        Ok(MultiTensor {
            table: gpu.upload(&pieces)?,
            slots,
        })
    }

    /// Whether the tensors still lie where the table says.
    pub fn is_for(&self, slots: &Slots) -> bool {
        self.slots == *slots
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        self.table.gpu()
    }

    pub(crate) fn ptr(&self) -> Ptr {
        self.table.ptr()
    }

    /// One block a piece.
    pub(crate) fn grid(&self) -> [u32; 3] {
        [self.table.len() as u32, 1, 1]
    }

    /// An error unless the state is what the optimiser needs: one tensor, or two.
    pub(crate) fn expect_state(&self, op: &'static str, two: bool) -> Result<()> {
        if self.slots.two == two {
            return Ok(());
        }
        let state = |two| {
            if two {
                "two tensors of state"
            } else {
                "one tensor of state"
            }
        };
        Err(Error::argument(
            op,
            "tensors",
            state(two),
            state(self.slots.two),
        ))
    }
}
