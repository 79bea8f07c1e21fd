//! From the kernels' sources to machine code: NVRTC, and a folder that remembers what it made.

use std::ffi::{CStr, CString};
use std::path::PathBuf;
use std::{fs, io};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::{Error, Variant};

#[cfg(test)]
mod tests;

/// Name and text of every source, generated from the folder `cuda/`.
const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sources.rs"));
/// Comes before each of them.
const COMMON: &str = include_str!("../../cuda/common.cuh");

/// A folder of compiled kernels. Files are named by what they depend on, so that a stale one is never read.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: Option<PathBuf>,
}

/// How far a compilation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The source that was made ready last.
    pub name: &'static str,
    /// Sources that are ready.
    pub num_done: usize,
    /// All sources.
    pub num_sources: usize,
    /// Whether it had to be compiled.
    pub is_new: bool,
}

/// Machine code of one source.
#[derive(Clone, Debug)]
pub struct Module {
    /// File name without extension.
    pub name: &'static str,
    /// A cubin.
    pub image: Vec<u8>,
}

/// Compiles all sources for `arch` (`sm_90a`, say), or reads them from `cache`.
///
/// # Errors
/// When NVRTC is missing and needed, or refuses a source.
pub fn compile(
    arch: &str,
    variant: Variant,
    cache: &Cache,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<Module>, Error> {
    let mut modules = Vec::with_capacity(SOURCES.len());
    for &(name, source) in SOURCES {
        let source = full_source(name, source);
        let options = options(arch, variant);
        let key = key(&source, &options);
        let (image, is_new) = match cache.read(name, &key) {
            Some(image) => (image, false),
            None => (compile_one(name, arch, &source, &options)?, true),
        };
        if is_new {
            cache.write(name, &key, &image);
        }
        modules.push(Module { name, image });
        let (num_done, num_sources) = (modules.len(), SOURCES.len());
        progress(Progress { name, num_done, num_sources, is_new });
    }
    Ok(modules)
}

/// Names of the kernels that the source `name` defines.
pub(super) fn kernels_of(name: &str) -> impl Iterator<Item = &'static str> {
    let source = SOURCES.iter().find(|source| source.0 == name).map_or("", |source| source.1);
    source.lines().filter_map(|line| line.strip_prefix("KERNEL(")?.split(',').next())
}

fn full_source(name: &str, source: &str) -> String {
    format!("#line 1 \"common.cuh\"\n{COMMON}\n#line 1 \"{name}.cu\"\n{source}")
}

fn options(arch: &str, variant: Variant) -> Vec<String> {
    let official = match variant {
        Variant::Exact => 0,
        Variant::Official => 1,
    };
    vec![
        format!("--gpu-architecture={arch}"),
        format!("--define-macro=OFFICIAL={official}"),
        "--std=c++17".to_owned(),
        "--device-as-default-execution-space".to_owned(),
    ]
}

/// A name for all that the machine code depends on, the compiler's version included.
fn key(source: &str, options: &[String]) -> String {
    let mut hash = Sha256::new();
    let (major, minor) = version().unwrap_or_default();
    hash.update(format!("{major}.{minor} {}\n", options.join(" ")));
    hash.update(source);
    hex::encode(&hash.finalize()[..16])
}

/// NVRTC's version, if there is one.
fn version() -> Option<(i32, i32)> {
    require_nvrtc().ok()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are valid for writes.
    let status = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    (status == sys::nvrtcResult::NVRTC_SUCCESS).then_some((major, minor))
}

fn require_nvrtc() -> Result<(), Error> {
    // SAFETY: loads the library, which has no constructors with preconditions.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::MissingLibrary {
        library: "NVRTC (libnvrtc.so)",
        advice: "install the package nvidia-cuda-nvrtc or a CUDA toolkit and put its folder into LD_LIBRARY_PATH",
    })
}

/// A compilation, destroyed with the value.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created and not yet destroyed. There is nothing to do about a failure.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile_one(
    name: &'static str,
    arch: &str,
    source: &str,
    options: &[String],
) -> Result<Vec<u8>, Error> {
    require_nvrtc()?;
    let refused = |log: String| Error::Compile { name, arch: arch.to_owned(), log };
    let text = CString::new(source).map_err(|error| refused(error.to_string()))?;
    let program =
        result::create_program(&text, None).map_err(|error| refused(format!("{error:?}")))?;
    let program = Program(program);
    // SAFETY: it was just created.
    if unsafe { result::compile_program(program.0, options) }.is_err() {
        return Err(refused(log(&program)));
    }
    cubin(&program).map_err(|status| refused(format!("{status:?}")))
}

fn log(program: &Program) -> String {
    // SAFETY: the program has been compiled.
    let Ok(mut log) = (unsafe { result::get_program_log(program.0) }) else { return String::new() };
    log.push(0);
    // SAFETY: it ends in a zero.
    unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned()
}

fn cubin(program: &Program) -> Result<Vec<u8>, sys::nvrtcResult> {
    let check = |status: sys::nvrtcResult| status.result().map_err(|error| error.0);
    let mut size = 0;
    // SAFETY: the program has been compiled, `size` is valid for writes.
    check(unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) })?;
    let mut image = vec![0_u8; size];
    // SAFETY: the image is as long as was asked for.
    check(unsafe { sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()) })?;
    Ok(image)
}

// === impl Cache ===

impl Cache {
    /// A cache in `dir`, which is made when it is first written to.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir: Some(dir) }
    }

    /// Remembers nothing.
    #[must_use]
    pub fn none() -> Self {
        Self { dir: None }
    }

    fn path(&self, name: &str, key: &str) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(format!("{name}-{key}.cubin")))
    }

    fn read(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        fs::read(self.path(name, key)?).ok()
    }

    /// Keeps machine code. A cache that cannot be written to costs time at the next start, nothing else.
    fn write(&self, name: &str, key: &str, image: &[u8]) {
        let Some(path) = self.path(name, key) else { return };
        let write = || -> io::Result<()> {
            let dir = path.parent().unwrap_or(&path);
            fs::create_dir_all(dir)?;
            // Another process may read or write the same file: it appears whole or not at all.
            let temporary = dir.join(format!(".{name}-{key}.{}", std::process::id()));
            fs::write(&temporary, image)?;
            fs::rename(temporary, &path)
        };
        let _ = write();
    }
}
