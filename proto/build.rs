//! Compiles the `.proto` files with protox, so that no `protoc` is needed.

use prost::Message as _;

#[expect(clippy::disallowed_methods, reason = "a build script is configured by its environment")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/switchyard/cluster/v1/cluster.proto",
        "proto/switchyard/worker/v1/worker.proto",
        "proto/switchyard/v1/inference.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .boxed(".switchyard.v1.TokenizeRequest.input.chat")
        .btree_map(".")
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
