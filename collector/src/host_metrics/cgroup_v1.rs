//! One cgroup in the hierarchies of version 1. Source: the kernel's `Documentation/admin-guide/cgroup-v1/`.

use std::path::Path;

use super::{
    cadvisor::{CgroupStats, DeviceIo, number, read},
    procfs::field,
};

/// A limit at or above this is none: the kernel shows "no limit" as the largest whole page.
const UNLIMITED: f64 = (1_u64 << 62) as f64;

/// `root`: folder of the hierarchies; `path`: the cgroup's, the same in each. Hierarchies that are missing leave `None`.
pub fn collect(root: &Path, path: &Path) -> CgroupStats {
    let hz = rustix::param::clock_ticks_per_second() as f64;
    let at = |controller: &str| root.join(controller).join(path);
    let (cpu, acct, memory, pids, blkio) = (at("cpu"), at("cpuacct"), at("memory"), at("pids"), at("blkio"));
    let acct_stat = read(&acct.join("cpuacct.stat"));
    let cpu_stat = read(&cpu.join("cpu.stat"));
    let memory_stat = read(&memory.join("memory.stat"));
    let usage = number(&memory.join("memory.usage_in_bytes"));
    let limit = |name: &str| number(&memory.join(name)).map(|l| if l >= UNLIMITED { 0.0 } else { l });
    CgroupStats {
        cpu_seconds: number(&acct.join("cpuacct.usage")).map(|ns| ns / 1e9),
        cpu_user_seconds: field(&acct_stat, "user").map(|t| t / hz),
        cpu_system_seconds: field(&acct_stat, "system").map(|t| t / hz),
        periods: field(&cpu_stat, "nr_periods"),
        throttled_periods: field(&cpu_stat, "nr_throttled"),
        throttled_seconds: field(&cpu_stat, "throttled_time").map(|ns| ns / 1e9),
        period_micros: number(&cpu.join("cpu.cfs_period_us")),
        quota_micros: number(&cpu.join("cpu.cfs_quota_us")).filter(|q| *q > 0.0),
        shares: number(&cpu.join("cpu.shares")),
        memory_usage: usage,
        memory_working_set: usage.map(|u| (u - field(&memory_stat, "total_inactive_file").unwrap_or(0.0)).max(0.0)),
        memory_rss: field(&memory_stat, "total_rss"),
        memory_cache: field(&memory_stat, "total_cache"),
        memory_mapped_file: field(&memory_stat, "total_mapped_file"),
        memory_swap: field(&memory_stat, "total_swap"),
        memory_max_usage: number(&memory.join("memory.max_usage_in_bytes")),
        memory_failures: number(&memory.join("memory.failcnt")),
        memory_limit: limit("memory.limit_in_bytes"),
        oom_kills: field(&read(&memory.join("memory.oom_control")), "oom_kill"),
        threads: number(&pids.join("pids.current")),
        threads_max: super::cadvisor::number_or_max(&pids.join("pids.max")),
        io: io(&blkio),
    }
}

/// Requests and bytes by device: of the throttling layer, or where that counts nothing, of the BFQ scheduler.
fn io(blkio: &Path) -> Vec<DeviceIo> {
    for layer in ["throttle", "bfq"] {
        let mut devices: Vec<DeviceIo> = Vec::new();
        for (file, bytes) in [("io_serviced", false), ("io_service_bytes", true)] {
            let text = read(&blkio.join(format!("blkio.{layer}.{file}_recursive")));
            for line in text.lines() {
                let mut words = line.split_ascii_whitespace();
                let (Some(device), Some(operation)) = (words.next(), words.next()) else { continue };
                let Some(value) = words.next().and_then(|w| w.parse().ok()) else { continue };
                let slot = match devices.iter_mut().position(|d| d.number == device) {
                    Some(i) => &mut devices[i],
                    None => {
                        devices.push(DeviceIo { number: device.to_owned(), ..DeviceIo::default() });
                        let last = devices.len() - 1;
                        &mut devices[last]
                    }
                };
                match (operation, bytes) {
                    ("Read", false) => slot.reads = value,
                    ("Write", false) => slot.writes = value,
                    ("Read", true) => slot.read_bytes = value,
                    ("Write", true) => slot.written_bytes = value,
                    _ => {}
                }
            }
        }
        if !devices.is_empty() {
            service_times(blkio, &mut devices);
            return devices;
        }
    }
    Vec::new()
}

/// Time between dispatch and completion, which only a scheduler counts: BFQ, and CFQ in kernels before 5.0.
fn service_times(blkio: &Path, devices: &mut [DeviceIo]) {
    for file in ["blkio.bfq.io_service_time_recursive", "blkio.io_service_time_recursive"] {
        let text = read(&blkio.join(file));
        for line in text.lines() {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [device, operation, nanos] = words[..] else { continue };
            let Some(slot) = devices.iter_mut().find(|d| d.number == device) else { continue };
            let seconds = nanos.parse::<f64>().ok().map(|ns| ns / 1e9);
            match operation {
                "Read" => slot.read_seconds = slot.read_seconds.or(seconds),
                "Write" => slot.write_seconds = slot.write_seconds.or(seconds),
                _ => {}
            }
        }
    }
}
