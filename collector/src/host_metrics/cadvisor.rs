//! Containers under cAdvisor's names, from their cgroups and their first process.
//!
//! A cgroup is a container's when its name holds a container's id of 64 hex digits, as under Docker, Podman, containerd and
//! CRI-O with either cgroup driver. Labels: `id` (the cgroup's path), `name`, `image`, and in Kubernetes `namespace`,
//! `pod`, `container`; a container whose name nobody tells has `id` alone.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    cgroup_v1, cgroup_v2,
    exposition::{COUNTER, Exposition, Family, GAUGE},
    procfs,
};
use crate::containers::{Container, runtime_files::CONTAINERS_MAX};

/// Deepest cgroup looked for.
const DEPTH_MAX: usize = 10;

/// Requests and bytes of one block device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceIo {
    /// `major:minor`
    pub number: String,
    pub reads: f64,
    pub writes: f64,
    pub read_bytes: f64,
    pub written_bytes: f64,
    /// Time in service; `None` where the kernel does not count it.
    pub read_seconds: Option<f64>,
    pub write_seconds: Option<f64>,
}

/// Figures of one cgroup, children included. Seconds, bytes, counts; `None`: not told. A limit of 0 is none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CgroupStats {
    pub cpu_seconds: Option<f64>,
    pub cpu_user_seconds: Option<f64>,
    pub cpu_system_seconds: Option<f64>,
    pub periods: Option<f64>,
    pub throttled_periods: Option<f64>,
    pub throttled_seconds: Option<f64>,
    pub period_micros: Option<f64>,
    /// `None` also when there is no quota.
    pub quota_micros: Option<f64>,
    pub shares: Option<f64>,
    pub memory_usage: Option<f64>,
    /// Usage without inactive page cache: what cannot be had back easily.
    pub memory_working_set: Option<f64>,
    pub memory_rss: Option<f64>,
    pub memory_cache: Option<f64>,
    pub memory_mapped_file: Option<f64>,
    pub memory_swap: Option<f64>,
    pub memory_max_usage: Option<f64>,
    pub memory_failures: Option<f64>,
    pub memory_limit: Option<f64>,
    pub oom_kills: Option<f64>,
    pub threads: Option<f64>,
    pub threads_max: Option<f64>,
    pub io: Vec<DeviceIo>,
}

type Field = fn(&CgroupStats) -> Option<f64>;

const FIGURES: [(Family, Field); 20] = [
    (Family("container_cpu_user_seconds_total", COUNTER, "User cpu time, seconds."), |s| s.cpu_user_seconds),
    (Family("container_cpu_system_seconds_total", COUNTER, "System cpu time, seconds."), |s| s.cpu_system_seconds),
    (Family("container_cpu_cfs_periods_total", COUNTER, "Elapsed enforcement periods."), |s| s.periods),
    (Family("container_cpu_cfs_throttled_periods_total", COUNTER, "Throttled periods."), |s| s.throttled_periods),
    (Family("container_cpu_cfs_throttled_seconds_total", COUNTER, "Time throttled, seconds."), |s| {
        s.throttled_seconds
    }),
    (Family("container_spec_cpu_period", GAUGE, "Enforcement period, microseconds."), |s| s.period_micros),
    (Family("container_spec_cpu_quota", GAUGE, "Cpu time per period, microseconds."), |s| s.quota_micros),
    (Family("container_spec_cpu_shares", GAUGE, "Cpu shares."), |s| s.shares),
    (Family("container_memory_usage_bytes", GAUGE, "Memory in use, page cache included."), |s| s.memory_usage),
    (Family("container_memory_working_set_bytes", GAUGE, "Memory in use without inactive page cache."), |s| {
        s.memory_working_set
    }),
    (Family("container_memory_rss", GAUGE, "Anonymous memory, bytes."), |s| s.memory_rss),
    (Family("container_memory_cache", GAUGE, "Page cache, bytes."), |s| s.memory_cache),
    (Family("container_memory_mapped_file", GAUGE, "Mapped files, bytes."), |s| s.memory_mapped_file),
    (Family("container_memory_swap", GAUGE, "Swap in use, bytes."), |s| s.memory_swap),
    (Family("container_memory_max_usage_bytes", GAUGE, "Most memory ever in use."), |s| s.memory_max_usage),
    (Family("container_memory_failcnt", COUNTER, "Times the limit was hit."), |s| s.memory_failures),
    (Family("container_spec_memory_limit_bytes", GAUGE, "Memory limit; 0: none."), |s| s.memory_limit),
    (Family("container_oom_events_total", COUNTER, "Processes killed for want of memory."), |s| s.oom_kills),
    (Family("container_threads", GAUGE, "Threads."), |s| s.threads),
    (Family("container_threads_max", GAUGE, "Most threads allowed; 0: no limit."), |s| s.threads_max),
];

const CPU: Family = Family("container_cpu_usage_seconds_total", COUNTER, "Cpu time, seconds.");
const READS: Family = Family("container_fs_reads_total", COUNTER, "Reads completed.");
const WRITES: Family = Family("container_fs_writes_total", COUNTER, "Writes completed.");
const READ_BYTES: Family = Family("container_fs_reads_bytes_total", COUNTER, "Bytes read.");
const READ_SECONDS: Family = Family("container_fs_reads_seconds_total", COUNTER, "Time spent reading, seconds.");
const WRITE_SECONDS: Family = Family("container_fs_writes_seconds_total", COUNTER, "Time spent writing, seconds.");
const WRITTEN_BYTES: Family = Family("container_fs_writes_bytes_total", COUNTER, "Bytes written.");
const LAST_SEEN: Family = Family("container_last_seen", GAUGE, "When the container was last seen, Unix seconds.");
const START: Family = Family("container_start_time_seconds", GAUGE, "When its first process started, Unix seconds.");
const PROCESSES: Family = Family("container_processes", GAUGE, "Processes.");
/// Columns of `/proc/net/dev`, the first four both ways.
const NETWORK: [&str; 4] = ["bytes", "packets", "errors", "packets_dropped"];

/// A file's text; empty when it cannot be read.
pub(super) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A file that holds one number.
pub(super) fn number(path: &Path) -> Option<f64> {
    read(path).trim().parse().ok()
}

/// A file that holds a number or `max`, which is 0.
pub(super) fn number_or_max(path: &Path) -> Option<f64> {
    match read(path).trim() {
        "max" => Some(0.0),
        text => text.parse().ok(),
    }
}

/// The cgroup hierarchies below one folder: version 2 alone, version 1, or version 1 with version 2 at `unified`.
pub struct Hierarchies {
    root: PathBuf,
}

impl Hierarchies {
    pub fn new(root: PathBuf) -> Self {
        Hierarchies { root }
    }

    fn is_v2(&self) -> bool {
        self.root.join("cgroup.controllers").exists()
    }

    /// Folders of which each has all cgroups in the usual case; the first that has containers is taken.
    fn trees(&self) -> Vec<PathBuf> {
        if self.is_v2() {
            return vec![self.root.clone()];
        }
        ["memory", "cpuacct", "cpu", "pids", "systemd", "unified"].iter().map(|c| self.root.join(c)).collect()
    }

    /// Container ids with their cgroups, relative to the root of a hierarchy.
    pub fn containers(&self) -> BTreeMap<String, PathBuf> {
        for tree in self.trees() {
            let mut found = BTreeMap::new();
            walk(&tree, Path::new(""), 0, &mut found);
            if !found.is_empty() {
                return found;
            }
        }
        BTreeMap::new()
    }

    pub fn stats(&self, path: &Path) -> CgroupStats {
        if self.is_v2() { cgroup_v2::collect(&self.root.join(path)) } else { cgroup_v1::collect(&self.root, path) }
    }

    /// Processes of the cgroup and those below it.
    pub fn processes(&self, path: &Path) -> Vec<u32> {
        let mut out = Vec::new();
        if let Some(tree) = self.trees().iter().map(|t| t.join(path)).find(|d| d.join("cgroup.procs").exists()) {
            gather_processes(&tree, 0, &mut out);
        }
        out
    }
}

fn gather_processes(dir: &Path, depth: usize, out: &mut Vec<u32>) {
    out.extend(read(&dir.join("cgroup.procs")).lines().filter_map(|l| l.parse::<u32>().ok()));
    for child in folders(dir).into_iter().take(1000) {
        if depth < DEPTH_MAX {
            gather_processes(&dir.join(child), depth + 1, out);
        }
    }
}

fn folders(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

fn walk(tree: &Path, at: &Path, depth: usize, found: &mut BTreeMap<String, PathBuf>) {
    for name in folders(&tree.join(at)) {
        let path = at.join(&name);
        match id_in(&name) {
            Some(_) if name.contains("conmon") => {}
            Some(id) => drop(found.insert(id.to_owned(), path)),
            None if depth < DEPTH_MAX && found.len() < CONTAINERS_MAX => walk(tree, &path, depth + 1, found),
            None => {}
        }
    }
}

/// The container id in a cgroup's name: `<id>`, `docker-<id>.scope`, `libpod-<id>`, `cri-containerd-<id>.scope` ...
fn id_in(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(".scope").unwrap_or(name);
    let start = stem.len().checked_sub(64)?;
    let id = stem.get(start..)?;
    let separated = start == 0 || matches!(stem.as_bytes()[start - 1], b'-' | b':');
    (separated && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))).then_some(id)
}

/// Adds the figures of every container that has a cgroup. May block.
pub fn collect(proc: &Path, hierarchies: &Hierarchies, containers: &[Container], out: &mut Exposition) {
    let known: HashMap<&str, &Container> = containers.iter().map(|c| (c.id.as_str(), c)).collect();
    let diskstats = read(&proc.join("diskstats"));
    let devices: HashMap<String, String> =
        procfs::diskstats(&diskstats).map(|d| (d.number, format!("/dev/{}", d.device))).collect();
    let boot = procfs::field(&read(&proc.join("stat")), "btime");
    let own_network = network_of(proc, "self");
    for (id, path) in hierarchies.containers() {
        let cgroup = format!("/{}", path.display());
        let mut labels: Vec<(&str, &str)> = vec![("id", &cgroup)];
        if let Some(c) = known.get(id.as_str()) {
            labels.extend([("name", c.name.as_str()), ("image", c.image.as_str())]);
            if let Some(pod) = &c.pod {
                labels.extend([("namespace", &*pod.namespace), ("pod", &*pod.name), ("container", &*c.name)]);
            }
        }
        let stats = hierarchies.stats(&path);
        let processes = hierarchies.processes(&path);
        let with = |more: &[(&'static str, &str)]| -> Vec<(String, String)> {
            labels.iter().chain(more).map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        let mut add = |family: &Family, more: &[(&'static str, &str)], value: Option<f64>| {
            let all = with(more);
            let all: Vec<(&str, &str)> = all.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            out.add_some(family, &all, value);
        };
        add(&CPU, &[("cpu", "total")], stats.cpu_seconds);
        for (family, value) in &FIGURES {
            add(family, &[], value(&stats));
        }
        for d in &stats.io {
            let device = [("device", devices.get(&d.number).map_or("", String::as_str))];
            add(&READS, &device, Some(d.reads));
            add(&WRITES, &device, Some(d.writes));
            add(&READ_BYTES, &device, Some(d.read_bytes));
            add(&WRITTEN_BYTES, &device, Some(d.written_bytes));
            add(&READ_SECONDS, &device, d.read_seconds);
            add(&WRITE_SECONDS, &device, d.write_seconds);
        }
        add(&PROCESSES, &[], Some(processes.len() as f64));
        let Some(first) = processes.first() else { continue };
        let ticks = procfs::start_ticks(&read(&proc.join(format!("{first}/stat"))));
        let hz = rustix::param::clock_ticks_per_second() as f64;
        add(&START, &[], ticks.zip(boot).map(|(t, b)| b + t / hz));
        // The host's own network is not the container's.
        let network = network_of(proc, &first.to_string());
        if network.is_none() || network != own_network {
            let text = read(&proc.join(format!("{first}/net/dev")));
            for d in procfs::net_dev(&text).filter(|d| d.device != "lo") {
                for (direction, values) in [("receive", d.receive), ("transmit", d.transmit)] {
                    for (column, value) in NETWORK.iter().zip(values) {
                        let all = with(&[("interface", d.device)]);
                        let all: Vec<(&str, &str)> = all.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                        let name = format!("container_network_{direction}_{column}_total");
                        out.add_named(&name, COUNTER, "As /proc/net/dev of the container has it.", &all, value);
                    }
                }
            }
        }
        let seen = (out.ts_ms() / 1000) as f64;
        out.add(&LAST_SEEN, &labels, seen);
    }
}

/// Identity of a process's network namespace.
fn network_of(proc: &Path, pid: &str) -> Option<(u64, u64)> {
    fs::metadata(proc.join(pid).join("ns/net")).ok().map(|m| (m.dev(), m.ino()))
}
