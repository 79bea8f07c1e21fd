//! Rows of numbers on the device.

use half::bf16;
use half::slice::HalfFloatSliceExt;

use super::{Address, Gpu, Memory};

/// Type of a tensor's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
}

/// A matrix `[num_rows, cols]`, row-major, whose memory grows when it must and never shrinks.
#[derive(Debug)]
pub struct Tensor {
    memory: Memory<u8>,
    gpu: Gpu,
    elem: Elem,
    num_rows: usize,
    cols: usize,
}

// === impl Elem ===

impl Elem {
    /// Bytes of a number.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => size_of::<bf16>(),
        }
    }
}

// === impl Tensor ===

impl Tensor {
    /// No rows yet, of `cols` numbers.
    #[must_use]
    pub fn new(gpu: &Gpu, elem: Elem, cols: usize) -> Self {
        Self { memory: gpu.zeros(0), gpu: gpu.clone(), elem, num_rows: 0, cols }
    }

    /// Copies numbers, rounded to `elem`, `[data.len() / cols, cols]`.
    ///
    /// # Panics
    ///
    /// If they are not whole rows.
    #[must_use]
    pub fn upload(gpu: &Gpu, elem: Elem, data: &[f32], cols: usize) -> Self {
        assert_eq!(data.len() % cols, 0, "numbers over rows of {cols}");
        let mut tensor = Self::new(gpu, elem, cols);
        tensor.shape(elem, data.len() / cols, cols);
        let bytes: Vec<u8> = match elem {
            Elem::F32 => data.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Elem::Bf16 => data.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        };
        tensor.memory.write(0, &bytes);
        tensor
    }

    /// Copies all numbers to the host.
    #[must_use]
    pub fn download(&self) -> Vec<f32> {
        let len = self.num_rows * self.cols;
        let bytes = self.memory.read(0, len * self.elem.num_bytes());
        match self.elem {
            Elem::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Elem::Bf16 => {
                let halves: Vec<bf16> =
                    bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect();
                halves.to_f32_vec()
            }
        }
    }

    /// Gives it another shape and type; its numbers are of any value then.
    pub fn shape(&mut self, elem: Elem, num_rows: usize, cols: usize) {
        (self.elem, self.num_rows, self.cols) = (elem, num_rows, cols);
        let num_bytes = num_rows * cols * elem.num_bytes();
        if num_bytes > self.memory.len() {
            self.memory = self.gpu.zeros(num_bytes);
        }
    }

    /// [`shape`](Self::shape) with the same type and width.
    pub fn resize(&mut self, num_rows: usize) {
        self.shape(self.elem, num_rows, self.cols);
    }

    /// Rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Numbers of a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Type of the numbers.
    #[must_use]
    pub fn elem(&self) -> Elem {
        self.elem
    }

    /// Where they are.
    pub(crate) fn address(&self) -> Address {
        self.memory.address()
    }

    /// Where activations are.
    ///
    /// # Panics
    ///
    /// If the numbers are not of the variant's activation type.
    pub(crate) fn act(&self) -> Address {
        assert_eq!(self.elem, self.gpu.act(), "type of an activation tensor");
        self.memory.address()
    }

    /// Where `f32` numbers are.
    ///
    /// # Panics
    ///
    /// If they are not `f32`.
    pub(crate) fn f32(&self) -> Address {
        assert_eq!(self.elem, Elem::F32, "type of an f32 tensor");
        self.memory.address()
    }
}
