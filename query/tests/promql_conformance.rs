//! Runs the PromQL scripts of `../shared/conformance/promql/cases` (or of the folder in `SIGHTLINE_PROMQL_CASES`)
//! through the store and the engine. Each file must pass at least as many evaluations as `promql_floors.txt` says;
//! the floors may only rise. `SIGHTLINE_PROMQL_VERBOSE=1` prints each failure.

mod promql_script;

use std::{collections::BTreeMap, fs, path::PathBuf};

const FLOORS: &str = include_str!("promql_floors.txt");

fn floors() -> BTreeMap<String, usize> {
    FLOORS
        .lines()
        .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
        .map(|l| {
            let (name, n) = l.split_once(' ').expect("a floor is `file number`");
            (name.to_owned(), n.trim().parse().expect("a floor is a number"))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_script_passes_at_least_its_floor() {
    let own = std::env::var_os("SIGHTLINE_PROMQL_CASES").map(PathBuf::from);
    let folder = own.clone().unwrap_or_else(|| {
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/conformance/promql/cases"))
    });
    let Ok(entries) = fs::read_dir(&folder) else {
        assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "no PromQL cases in {}", folder.display());
        eprintln!("SKIPPED: no PromQL cases in {}", folder.display());
        return;
    };
    let verbose = std::env::var_os("SIGHTLINE_PROMQL_VERBOSE").is_some();
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "test"));
    files.sort();
    let floors = floors();
    let (mut all_passed, mut all_failed, mut below) = (0, 0, Vec::new());
    for file in files {
        let name = file.file_name().expect("listed file").to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).expect("readable script");
        let result = promql_script::run(&text).await;
        println!("{name}: {} passed, {} failed", result.passed, result.failures.len());
        if verbose {
            result.failures.iter().for_each(|f| println!("  {name}:{f}"));
        }
        all_passed += result.passed;
        all_failed += result.failures.len();
        let floor = if own.is_some() { 0 } else { floors.get(&name).copied().unwrap_or(0) };
        if result.passed < floor {
            below.push(format!("{name}: {} passed, floor {floor}", result.passed));
        }
    }
    println!("{all_passed} passed, {all_failed} failed");
    assert!(below.is_empty(), "under the floor: {below:?}");
}
