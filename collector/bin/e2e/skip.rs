//! What a test needs beyond this repository: there, or skipped loudly, or (`SIGHTLINE_REQUIRE_ALL=1`) a failure.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The folder of test data beside the repository, or the one `SIGHTLINE_SHARED` names.
pub fn shared() -> PathBuf {
    std::env::var_os("SIGHTLINE_SHARED")
        .map_or_else(|| concat!(env!("CARGO_MANIFEST_DIR"), "/../shared").into(), PathBuf::from)
}

/// Says why a test cannot run here; fails where everything is required.
pub fn skipped(test: &str, missing: &str) {
    assert!(std::env::var("SIGHTLINE_REQUIRE_ALL").as_deref() != Ok("1"), "{test} needs {missing}");
    eprintln!("SKIPPED: {test} needs {missing}");
}

/// Runs a client; what it says on standard error is a failure too.
pub fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(out) if out.status.success() && out.stderr.is_empty() => Ok(()),
        Ok(out) => Err(format!("{command:?}: {} {}", out.status, String::from_utf8_lossy(&out.stderr).trim_end())),
        Err(e) => Err(format!("{command:?}: {e}")),
    }
}

/// The folder of these packages from npm (`name@version`): the one `NODE_PATH` names, else one set up beside the build.
pub fn node_modules(folder: &str, packages: &[&str]) -> Result<PathBuf, String> {
    let names = packages.iter().map(|p| p.rfind('@').filter(|at| *at > 0).map_or(*p, |at| &p[..at]));
    let require: String = names.map(|name| format!("require('{name}');")).collect();
    let has = |path: &Path| run(Command::new("node").args(["-e", &require]).env("NODE_PATH", path)).is_ok();
    if let Some(path) = std::env::var_os("NODE_PATH").map(PathBuf::from).filter(|p| has(p)) {
        return Ok(path);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let modules = folder.join("node_modules");
    if !has(&modules) {
        std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let install = ["install", "--silent", "--no-audit", "--no-fund"];
        run(Command::new("npm").current_dir(&folder).args(install).args(packages))?;
    }
    if has(&modules) { Ok(modules) } else { Err(format!("{} cannot be loaded", packages.join(", "))) }
}
