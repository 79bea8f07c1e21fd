//! Measurements of one rank by itself, with weights of the true shapes and no meaning.
//!
//! - [`step`]: a decode step.
//! - [`kernels`]: each kernel of a GPU.

pub mod step;
pub mod kernels;
