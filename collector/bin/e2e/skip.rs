//! What a test needs beyond this repository: there, or skipped loudly, or (`SIGHTLINE_REQUIRE_ALL=1`) a failure.

use std::path::PathBuf;

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
