//! One cgroup of version 2. Source: the kernel's `Documentation/admin-guide/cgroup-v2.rst`.

use std::path::Path;

use super::{
    cadvisor::{CgroupStats, DeviceIo, number, number_or_max, read},
    procfs::field,
};

/// `dir`: the cgroup's folder. Controllers that are not enabled leave `None`.
pub fn collect(dir: &Path) -> CgroupStats {
    let cpu = read(&dir.join("cpu.stat"));
    let memory = read(&dir.join("memory.stat"));
    let events = read(&dir.join("memory.events"));
    let seconds = |name: &str| field(&cpu, name).map(|us| us / 1e6);
    let usage = number(&dir.join("memory.current"));
    // `cpu.max` is "<quota or max> <period>", microseconds.
    let max = read(&dir.join("cpu.max"));
    let mut max = max.split_ascii_whitespace().map(|w| w.parse().ok());
    let quota_micros = max.next().flatten();
    let weight = number(&dir.join("cpu.weight"));
    CgroupStats {
        cpu_seconds: seconds("usage_usec"),
        cpu_user_seconds: seconds("user_usec"),
        cpu_system_seconds: seconds("system_usec"),
        periods: field(&cpu, "nr_periods"),
        throttled_periods: field(&cpu, "nr_throttled"),
        throttled_seconds: seconds("throttled_usec"),
        period_micros: max.next().flatten(),
        quota_micros,
        // The weights 1 to 10000 stand for the shares 2 to 262144, linearly, as the OCI runtimes convert them.
        shares: weight.map(|w| (2.0 + (w - 1.0) * 262_142.0 / 9_999.0).floor()),
        memory_usage: usage,
        memory_working_set: usage.map(|u| (u - field(&memory, "inactive_file").unwrap_or(0.0)).max(0.0)),
        memory_rss: field(&memory, "anon"),
        memory_cache: field(&memory, "file"),
        memory_mapped_file: field(&memory, "file_mapped"),
        memory_swap: number(&dir.join("memory.swap.current")),
        memory_max_usage: number(&dir.join("memory.peak")),
        memory_failures: field(&events, "max"),
        memory_limit: number_or_max(&dir.join("memory.max")),
        oom_kills: field(&events, "oom_kill"),
        threads: number(&dir.join("pids.current")),
        threads_max: number_or_max(&dir.join("pids.max")),
        io: read(&dir.join("io.stat")).lines().filter_map(io).collect(),
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`
fn io(line: &str) -> Option<DeviceIo> {
    let (device, rest) = line.split_once(' ')?;
    let value = |name: &str| -> f64 {
        let found = rest.split(' ').find_map(|w| w.strip_prefix(name)?.strip_prefix('='));
        found.and_then(|v| v.parse().ok()).unwrap_or(0.0)
    };
    Some(DeviceIo {
        number: device.to_owned(),
        reads: value("rios"),
        writes: value("wios"),
        read_bytes: value("rbytes"),
        written_bytes: value("wbytes"),
        // `io.stat` counts no time.
        read_seconds: None,
        write_seconds: None,
    })
}
