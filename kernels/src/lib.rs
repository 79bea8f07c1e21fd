//! Every operation of the model, and every `unsafe` line of the project.
//!
//! One op has one name in each place it exists: a plain reference, a CPU (SIMD) version, and on GPUs a CUDA one.
