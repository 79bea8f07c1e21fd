//! Which instructions and how many threads an op may use.

#[cfg(test)]
mod tests;

use std::fmt;
use std::num::NonZeroUsize;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx512};
use crate::simd::{Kernel, Portable};

/// Why a [`Cpu`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused the threads.
    #[error("cannot start {num_threads} compute threads; lower the number of threads")]
    Threads {
        /// Threads asked for.
        num_threads: NonZeroUsize,
        /// The pool's reason.
        #[source]
        source: rayon::ThreadPoolBuildError,
    },
}

/// An instruction set that this machine has been found to have. All give the same bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

/// Where ops run: an instruction set and a number of threads. Every op takes one.
pub struct Cpu {
    isa: Isa,
    /// `None` for one thread: ops then run on the caller's, with nothing in between.
    pool: Option<rayon::ThreadPool>,
}

// === impl Isa ===

impl Isa {
    /// Plain Rust, on any machine.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// The fastest instruction set of this machine.
    pub fn detect() -> Self {
        Self::available().last().copied().unwrap_or(Self::PORTABLE)
    }

    /// Every instruction set of this machine, slowest first.
    pub fn available() -> Vec<Self> {
        std::iter::once(Self::PORTABLE).chain(Self::vectors()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn vectors() -> impl Iterator<Item = Self> {
        let avx2 = Avx2::detect().map(|token| Self(Kind::Avx2(token)));
        let avx512 = Avx512::detect().map(|token| Self(Kind::Avx512(token)));
        avx2.into_iter().chain(avx512)
    }

    /// Other architectures have no vectors of their own yet; the compiler makes some of the portable ones.
    #[cfg(not(target_arch = "x86_64"))]
    fn vectors() -> impl Iterator<Item = Self> {
        std::iter::empty()
    }

    /// Lower-case name, as in logs.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Kind::Portable => kernel.run(Portable),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(token) => token.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(token) => token.run(kernel),
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Cpu ===

impl Cpu {
    /// The given instruction set with `num_threads` threads.
    ///
    /// # Errors
    ///
    /// If the threads cannot be started.
    pub fn new(isa: Isa, num_threads: NonZeroUsize) -> Result<Self, Error> {
        let pool = (num_threads.get() > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(num_threads.get())
                    .thread_name(|i| format!("kernels-{i}"))
                    .build()
                    .map_err(|source| Error::Threads { num_threads, source })
            })
            .transpose()?;
        Ok(Self { isa, pool })
    }

    /// The fastest instruction set with `num_threads` threads.
    ///
    /// # Errors
    ///
    /// If the threads cannot be started.
    pub fn detect(num_threads: NonZeroUsize) -> Result<Self, Error> {
        Self::new(Isa::detect(), num_threads)
    }

    /// The given instruction set on the caller's thread.
    pub fn single_threaded(isa: Isa) -> Self {
        Self { isa, pool: None }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of threads.
    pub fn num_threads(&self) -> usize {
        self.pool.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Calls `f(i, chunk i)` for each chunk of `chunk_len` elements (the last may be shorter), spread over the threads.
    /// Results cannot depend on the spread unless `f` shares state.
    pub fn for_each_chunk<T, F>(&self, data: &mut [T], chunk_len: usize, f: F)
    where
        T: Send,
        F: Fn(usize, &mut [T]) + Send + Sync,
    {
        match &self.pool {
            Some(pool) if data.len() > chunk_len => pool.install(|| {
                data.par_chunks_mut(chunk_len).enumerate().for_each(|(i, chunk)| f(i, chunk));
            }),
            Some(_) | None => {
                data.chunks_mut(chunk_len).enumerate().for_each(|(i, chunk)| f(i, chunk));
            }
        }
    }

    /// Runs a kernel on the caller's thread.
    pub(crate) fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.isa.run(kernel)
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cpu")
            .field("isa", &self.isa)
            .field("num_threads", &self.num_threads())
            .finish()
    }
}
