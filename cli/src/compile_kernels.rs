//! `switchyard compile-kernels`: fills the folder of GPU kernels ahead of time, for machines like the ones named.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use switchyard_kernels::cuda::Variant;
use switchyard_kernels::cuda::compile::{self, Cache, Progress};

use crate::config::{self, Problems};
use crate::terminal;

#[cfg(test)]
mod tests;

/// Arguments of `switchyard compile-kernels`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Architectures to compile for: `sm_80` A100, `sm_89` L40, `sm_90a` H100 and H200, `sm_100a` B200.
    #[arg(long, required = true, value_delimiter = ',', value_name = "ARCH")]
    arch: Vec<String>,
    /// Folder of compiled GPU kernels [default: the user's cache folder].
    #[arg(long, env = "SWITCHYARD_KERNEL_CACHE", value_name = "DIR")]
    kernel_cache: Option<PathBuf>,
}

/// Compiles what the folder does not hold yet, in both numerics.
///
/// # Errors
/// An architecture is none, there is no compiler, or the folder cannot be written to.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut problems = Problems::default();
    for arch in &args.arch {
        problems.take(check(arch));
    }
    problems.finish()?;
    let dir = args.kernel_cache.clone().unwrap_or_else(config::default_kernel_cache);
    std::fs::create_dir_all(&dir)
        .with_context(|| format!("cannot create the kernel cache {}", dir.display()))?;
    let cache = Cache::new(dir.clone());
    let variants = [("exact", Variant::Exact), ("official", Variant::Official)];
    for arch in &args.arch {
        for (numerics, variant) in variants {
            compile::compile(arch, variant, &cache, &mut |done| tell(arch, numerics, done))?;
            // The cache forgives a disk that is full, but then it was filled for nothing.
            let mut num_missing = 0;
            compile::compile(arch, variant, &cache, &mut |done| {
                num_missing += usize::from(done.is_new);
            })?;
            ensure!(num_missing == 0, "cannot write to the kernel cache {}", dir.display());
        }
    }
    terminal::line(format_args!("kernels for {} are in {}", args.arch.join(", "), dir.display()));
    Ok(ExitCode::SUCCESS)
}

fn tell(arch: &str, numerics: &str, done: Progress) {
    let Progress { name, num_done, num_sources, is_new } = done;
    let what = if is_new { "compiled kernels" } else { "already there:" };
    terminal::note(format_args!("{arch} {numerics}: {what} {num_done} of {num_sources}: {name}"));
}

/// `sm_` and a number, and perhaps a letter for the instructions that only this architecture has.
fn check(arch: &str) -> Result<(), String> {
    let number = arch.strip_prefix("sm_").map(|rest| rest.strip_suffix(['a', 'f']).unwrap_or(rest));
    match number {
        Some(number) if number.len() >= 2 && number.bytes().all(|digit| digit.is_ascii_digit()) => {
            Ok(())
        }
        _ => Err(format!("--arch {arch}: expected an architecture such as sm_90a")),
    }
}
