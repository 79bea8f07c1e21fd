//! Lists the CUDA sources, and, for the emulator, compiles them for the CPU.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let cuda = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    println!("cargo::rerun-if-changed={}", cuda.display());
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let mut sources: Vec<PathBuf> =
        fs::read_dir(&cuda)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    let entry = |path: &PathBuf| {
        let name = path.file_stem().unwrap_or_default().display();
        format!("({:?}, include_str!({:?})),\n", name.to_string(), path.display().to_string())
    };
    let list: String = sources.iter().map(entry).collect();
    fs::write(out.join("sources.rs"), format!("&[\n{list}]\n"))?;
    if env::var_os("CARGO_FEATURE_CUDA_EMULATOR").is_some() {
        emulator(&cuda, &sources, &out)?;
    }
    Ok(())
}

/// Builds both numerics of every kernel into one static library.
#[cfg(feature = "cuda-emulator")]
fn emulator(cuda: &Path, sources: &[PathBuf], out: &Path) -> io::Result<()> {
    let includes: String =
        sources.iter().map(|path| format!("#include {:?}\n", path.display().to_string())).collect();
    fs::write(out.join("sources.inc"), includes)?;
    for (variant, official) in [("exact", "0"), ("official", "1")] {
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .file(cuda.join("emulator/emulator.cpp"))
            .include(out)
            .define("VARIANT", variant)
            .define("OFFICIAL", official)
            .opt_level(2)
            .debug(false)
            .flag("-ffp-contract=off")
            .flag_if_supported("-Wno-unknown-pragmas")
            .flag_if_supported("-Wno-unused-function")
            .flag_if_supported("-Wno-unused-parameter")
            .try_compile(&format!("switchyard_emulated_{variant}"))
            .map_err(io::Error::other)?;
    }
    Ok(())
}

#[cfg(not(feature = "cuda-emulator"))]
fn emulator(_cuda: &Path, _sources: &[PathBuf], _out: &Path) -> io::Result<()> {
    Ok(())
}
