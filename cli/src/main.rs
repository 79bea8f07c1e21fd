//! The `switchyard` program.
#![forbid(unsafe_code)]

fn main() {}
