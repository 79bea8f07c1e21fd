//! Shared pieces of the benchmarks.
#![forbid(unsafe_code)]
