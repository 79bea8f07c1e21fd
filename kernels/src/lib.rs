//! Every operation of the model, and every `unsafe` line of the project.
//!
//! One op has one name in each place it exists: a plain reference in its `tests.rs`, a CPU version here, and on
//! GPUs a CUDA one. In the order in which a token meets them:
//!
//! - [`cpu`]: which instructions and threads an op may use ([`Cpu`], [`Isa`]).
//! - [`quant`]: number formats: bf16, e4m3, e2m1, ue8m0.
//! - [`matmul`]: weights in the checkpoint's formats ([`matmul::WeightMatrix`]) and the products with them.
//! - [`norm`], [`rope`], [`hadamard`], [`hyper`]: the small ops of every layer.
//! - [`compressor`], [`indexer`], [`attention`]: the three parts of an attention layer.
//! - [`gate`], [`swiglu`], [`combine`]: the mixture of experts.
//! - [`sampling`]: from logits to a token.
//! - [`math`]: the elementary functions that all of them share.
//! - [`mmap`]: checkpoint files as memory.
//!
//! With the feature `cuda`, `cuda` holds the GPU's versions of all of them; their sources are in the folder `cuda/`.
//!
//! # Numbers
//!
//! All activations are `f32`. The bits of every result depend on the op's inputs only: not on the number of tokens in the
//! call, of threads, or the instruction set. Three rules make that so, and every new op keeps them:
//!
//! 1. A sum over an inner length is taken in sixteen lanes (`lane = k mod 16`), each a chain of fused multiply-adds in
//!    rising `k`, the length padded with zeros to a multiple of sixteen; then lanes are added as a binary tree
//!    (`i + (i + 8)`, `+ 4`, `+ 2`, `+ 1`).
//! 2. `exp`, `ln`, `sin` and their like are the polynomials of [`math`], never the platform's.
//! 3. A kernel is written once, over the trait of a sixteen-lane vector; each instruction set implements that trait with
//!    correctly rounded IEEE operations only. This rules out the bf16 dot-product instructions (`vdpbf16ps` flushes
//!    denormals and rounds its accumulator its own way), which would be a numerics of their own.
//!
//! This crate does no I/O, reads no clock and no environment, and holds no global state besides the cached result
//! of CPU detection.

#![expect(unsafe_code, reason = "the one crate that may: intrinsics and memory maps")]

pub mod cpu;
pub mod quant;
pub mod matmul;
pub mod norm;
pub mod rope;
pub mod hadamard;
pub mod hyper;
pub mod compressor;
pub mod indexer;
pub mod attention;
pub mod gate;
pub mod swiglu;
pub mod combine;
pub mod sampling;
pub mod math;
pub mod mmap;
#[cfg(feature = "cuda")]
pub mod cuda;
mod simd;
#[cfg(test)]
mod testing;

pub use cpu::{Cpu, Isa};
