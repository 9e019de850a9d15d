//! Lets a worker with libtorch find it: in the image, and where it was built.

fn main() {
    println!("cargo::rerun-if-env-changed=LIBTORCH");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    // `LD_LIBRARY_PATH` comes before both.
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,/opt/libtorch/torch/lib");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo::rustc-link-arg-bins=-Wl,-rpath,{libtorch}/lib");
    }
}
