//! Compiles the protocols that the kubelet speaks. `protox` is used so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=tests/proto");
    let files = protox::compile(["proto/csi.proto", "proto/registration.proto"], ["proto"])?;
    // The comments of the interface are prose for its readers, not Rust documentation.
    tonic_prost_build::configure()
        .disable_comments(["."])
        .compile_fds(files)?;

    // The controller service is spoken by tests alone: csi-sanity wants one to create volumes.
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("tests");
    std::fs::create_dir_all(&out)?;
    let files = protox::compile(["controller.proto"], ["tests/proto"])?;
    tonic_prost_build::configure()
        .disable_comments(["."])
        .out_dir(out)
        .compile_fds(files)?;
    Ok(())
}
