//! The host under node_exporter's names.

use std::{fs, path::Path};

use super::{
    exposition::{COUNTER, Exposition, Family, GAUGE},
    procfs,
};

const CPU: Family = Family("node_cpu_seconds_total", COUNTER, "Time a cpu spent in each mode, seconds.");
const GUEST: Family = Family(
    "node_cpu_guest_seconds_total",
    COUNTER,
    "Time a cpu spent running guests, seconds; part of user and nice.",
);
/// Columns of a `cpu` line of `/proc/stat`.
const MODES: [&str; 8] = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];

const STAT: [(&str, Family); 6] = [
    ("ctxt", Family("node_context_switches_total", COUNTER, "Context switches.")),
    ("intr", Family("node_intr_total", COUNTER, "Interrupts served.")),
    ("btime", Family("node_boot_time_seconds", GAUGE, "When the system booted, Unix seconds.")),
    ("processes", Family("node_forks_total", COUNTER, "Processes and threads created.")),
    ("procs_running", Family("node_procs_running", GAUGE, "Tasks that run or could run.")),
    ("procs_blocked", Family("node_procs_blocked", GAUGE, "Tasks that wait for input or output.")),
];

const LOADS: [Family; 3] = [
    Family("node_load1", GAUGE, "Load average over 1 minute."),
    Family("node_load5", GAUGE, "Load average over 5 minutes."),
    Family("node_load15", GAUGE, "Load average over 15 minutes."),
];

const RECEIVED: [&str; 8] = ["bytes", "packets", "errs", "drop", "fifo", "frame", "compressed", "multicast"];
const TRANSMITTED: [&str; 8] = ["bytes", "packets", "errs", "drop", "fifo", "colls", "carrier", "compressed"];

/// Bytes of a sector in `/proc/diskstats`, whatever the device's own sectors are.
const SECTOR: f64 = 512.0;
/// Milliseconds to seconds.
const MILLI: f64 = 1e-3;
/// Columns of `/proc/diskstats` after the name, each with its factor to the metric's unit.
const DISK: [(f64, Family); 17] = [
    (1.0, Family("node_disk_reads_completed_total", COUNTER, "Reads completed.")),
    (1.0, Family("node_disk_reads_merged_total", COUNTER, "Reads merged with another.")),
    (SECTOR, Family("node_disk_read_bytes_total", COUNTER, "Bytes read.")),
    (MILLI, Family("node_disk_read_time_seconds_total", COUNTER, "Time all reads took, seconds.")),
    (1.0, Family("node_disk_writes_completed_total", COUNTER, "Writes completed.")),
    (1.0, Family("node_disk_writes_merged_total", COUNTER, "Writes merged with another.")),
    (SECTOR, Family("node_disk_written_bytes_total", COUNTER, "Bytes written.")),
    (MILLI, Family("node_disk_write_time_seconds_total", COUNTER, "Time all writes took, seconds.")),
    (1.0, Family("node_disk_io_now", GAUGE, "Requests under way.")),
    (MILLI, Family("node_disk_io_time_seconds_total", COUNTER, "Time with any request under way, seconds.")),
    (
        MILLI,
        Family("node_disk_io_time_weighted_seconds_total", COUNTER, "Time all requests were under way, seconds."),
    ),
    (1.0, Family("node_disk_discards_completed_total", COUNTER, "Discards completed.")),
    (1.0, Family("node_disk_discards_merged_total", COUNTER, "Discards merged with another.")),
    (1.0, Family("node_disk_discarded_sectors_total", COUNTER, "Sectors discarded.")),
    (MILLI, Family("node_disk_discard_time_seconds_total", COUNTER, "Time all discards took, seconds.")),
    (1.0, Family("node_disk_flush_requests_total", COUNTER, "Flushes completed.")),
    (MILLI, Family("node_disk_flush_requests_time_seconds_total", COUNTER, "Time all flushes took, seconds.")),
];

const FS_SIZE: Family = Family("node_filesystem_size_bytes", GAUGE, "Size of the file system, bytes.");
const FS_FREE: Family = Family("node_filesystem_free_bytes", GAUGE, "Free bytes of the file system.");
const FS_AVAIL: Family = Family("node_filesystem_avail_bytes", GAUGE, "Free bytes open to users other than root.");
const FS_FILES: Family = Family("node_filesystem_files", GAUGE, "File nodes of the file system.");
const FS_FILES_FREE: Family = Family("node_filesystem_files_free", GAUGE, "Free file nodes of the file system.");
const FS_READONLY: Family = Family("node_filesystem_readonly", GAUGE, "1 when mounted read-only.");

const PRESSURE: [(&str, &str, Family); 5] = [
    ("cpu", "some", Family("node_pressure_cpu_waiting_seconds_total", COUNTER, "Time some task waited for cpu.")),
    ("io", "some", Family("node_pressure_io_waiting_seconds_total", COUNTER, "Time some task waited for io.")),
    ("io", "full", Family("node_pressure_io_stalled_seconds_total", COUNTER, "Time all tasks waited for io.")),
    (
        "memory",
        "some",
        Family("node_pressure_memory_waiting_seconds_total", COUNTER, "Time some task waited for memory."),
    ),
    (
        "memory",
        "full",
        Family("node_pressure_memory_stalled_seconds_total", COUNTER, "Time all tasks waited for memory."),
    ),
];

const VMSTAT: [&str; 7] = ["oom_kill", "pgfault", "pgmajfault", "pgpgin", "pgpgout", "pswpin", "pswpout"];
const FD_ALLOCATED: Family = Family("node_filefd_allocated", GAUGE, "Open file descriptors.");
const FD_MAXIMUM: Family = Family("node_filefd_maximum", GAUGE, "Most file descriptors that may be open.");
const TIME: Family = Family("node_time_seconds", GAUGE, "System time, Unix seconds.");
const UNAME: Family = Family("node_uname_info", GAUGE, "What uname tells of the system.");

/// Adds everything that `proc` tells; what is missing there is left out. May block.
pub fn collect(proc: &Path, out: &mut Exposition) {
    let read = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
    out.add(&TIME, &[], out.ts_ms() as f64 * MILLI);
    stat(&read("stat"), out);
    for (load, word) in LOADS.iter().zip(read("loadavg").split_ascii_whitespace()) {
        out.add_some(load, &[], word.parse().ok());
    }
    for (name, value) in procfs::meminfo(&read("meminfo")) {
        out.add_named(
            &format!("node_memory_{name}"),
            GAUGE,
            "As /proc/meminfo has it, in bytes or a count.",
            &[],
            value,
        );
    }
    network(&read("net/dev"), out);
    disks(&read("diskstats"), out);
    filesystems(&read("mounts"), out);
    for (name, value) in procfs::fields(&read("vmstat")).filter(|(n, _)| VMSTAT.contains(n)) {
        out.add_named(&format!("node_vmstat_{name}"), "unknown", "As /proc/vmstat has it.", &[], value);
    }
    let file_nr = read("sys/fs/file-nr");
    let mut counts = file_nr.split_ascii_whitespace().map(|w| w.parse().ok());
    out.add_some(&FD_ALLOCATED, &[], counts.next().flatten());
    out.add_some(&FD_MAXIMUM, &[], counts.nth(1).flatten());
    for (what, line, family) in &PRESSURE {
        let micros = procfs::pressure_total(&read(&format!("pressure/{what}")), line);
        out.add_some(family, &[], micros.map(|us| us / 1e6));
    }
    uname(out);
}

fn stat(text: &str, out: &mut Exposition) {
    let hz = rustix::param::clock_ticks_per_second() as f64;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(cpu) = words.next().and_then(|w| w.strip_prefix("cpu")).filter(|c| !c.is_empty()) else { continue };
        let ticks: Vec<f64> = words.map_while(|w| w.parse().ok()).collect();
        for (mode, ticks) in MODES.iter().zip(&ticks) {
            out.add(&CPU, &[("cpu", cpu), ("mode", mode)], ticks / hz);
        }
        for (mode, ticks) in ["user", "nice"].iter().zip(ticks.iter().skip(MODES.len())) {
            out.add(&GUEST, &[("cpu", cpu), ("mode", mode)], ticks / hz);
        }
    }
    for (name, family) in &STAT {
        out.add_some(family, &[], procfs::field(text, name));
    }
}

fn network(text: &str, out: &mut Exposition) {
    for d in procfs::net_dev(text) {
        for (direction, columns, values) in [("receive", RECEIVED, d.receive), ("transmit", TRANSMITTED, d.transmit)]
        {
            for (column, value) in columns.iter().zip(values) {
                let name = format!("node_network_{direction}_{column}_total");
                out.add_named(&name, COUNTER, "As /proc/net/dev has it.", &[("device", d.device)], value);
            }
        }
    }
}

fn disks(text: &str, out: &mut Exposition) {
    for d in procfs::diskstats(text).filter(|d| !procfs::is_partition_or_pseudo(d.device)) {
        for ((factor, family), value) in DISK.iter().zip(&d.values) {
            out.add(family, &[("device", d.device)], value * factor);
        }
    }
}

fn filesystems(mounts: &str, out: &mut Exposition) {
    for m in procfs::mounts(mounts) {
        let Ok(s) = rustix::fs::statvfs(&*m.mountpoint) else { continue };
        let labels = [("device", &*m.device), ("fstype", &*m.fstype), ("mountpoint", &*m.mountpoint)];
        let block = s.f_frsize as f64;
        out.add(&FS_SIZE, &labels, s.f_blocks as f64 * block);
        out.add(&FS_FREE, &labels, s.f_bfree as f64 * block);
        out.add(&FS_AVAIL, &labels, s.f_bavail as f64 * block);
        out.add(&FS_FILES, &labels, s.f_files as f64);
        out.add(&FS_FILES_FREE, &labels, s.f_ffree as f64);
        out.add(&FS_READONLY, &labels, f64::from(u8::from(m.read_only)));
    }
}

fn uname(out: &mut Exposition) {
    let u = rustix::system::uname();
    let text = |c: &std::ffi::CStr| c.to_string_lossy().into_owned();
    let all = [
        ("sysname", text(u.sysname())),
        ("release", text(u.release())),
        ("version", text(u.version())),
        ("machine", text(u.machine())),
        ("nodename", text(u.nodename())),
        ("domainname", text(u.domainname())),
    ];
    let labels: Vec<(&str, &str)> = all.iter().map(|(n, v)| (*n, v.as_str())).collect();
    out.add(&UNAME, &labels, 1.0);
}
