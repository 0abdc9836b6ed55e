//! Fixture trees for both cgroup versions, and the shared exposition of the real exporter.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use arrow::array::{Array, AsArray};
use storage::model::Labels;

use super::*;
use crate::containers::Runtime;

const ID: &str = "4b55f63fc46914ed851ad88289a167b645250c9d867bb6c8db792c7715052975";

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Series as `name{labels}` with their value.
fn samples(batch: &MetricBatch) -> Vec<(Labels, String, f64)> {
    let column = |b: &arrow::array::RecordBatch, n: &str| b.column_by_name(n).unwrap().clone();
    let ids = column(&batch.series, "series_id");
    let labels = column(&batch.series, "labels");
    let types = arrow::compute::cast(&column(&batch.series, "type"), &arrow::datatypes::DataType::Utf8).unwrap();
    let by_id: BTreeMap<i64, (Labels, String)> = (0..ids.len())
        .map(|i| {
            let l = Labels::from_json(labels.as_string::<i32>().value(i)).unwrap();
            (
                ids.as_primitive::<arrow::datatypes::Int64Type>().value(i),
                (l, types.as_string::<i32>().value(i).to_owned()),
            )
        })
        .collect();
    let (of, value) = (column(&batch.samples, "series_id"), column(&batch.samples, "value"));
    (0..of.len())
        .map(|i| {
            let (l, t) = by_id[&of.as_primitive::<arrow::datatypes::Int64Type>().value(i)].clone();
            (l, t, value.as_primitive::<arrow::datatypes::Float64Type>().value(i))
        })
        .collect()
}

fn value(all: &[(Labels, String, f64)], name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let matches = |l: &Labels| l.get("__name__") == Some(name) && labels.iter().all(|(n, v)| l.get(n) == Some(v));
    all.iter().find(|(l, _, _)| matches(l)).map(|(_, _, v)| *v)
}

fn container() -> Container {
    Container {
        id: ID.to_owned(),
        name: "web".to_owned(),
        image: "nginx:1".to_owned(),
        labels: BTreeMap::new(),
        runtime: Runtime::Podman,
        logs: Vec::new(),
        pid: None,
        pod: None,
    }
}

fn proc_fixture(proc: &Path) {
    write(&proc.join("stat"), "cpu  1 2 3 4\nbtime 1000\n");
    write(&proc.join("diskstats"), "   8       0 sda 1 2 3 4 5 6 7 8 9 10 11\n");
    write(&proc.join("42/stat"), "42 (a b) S 1 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 300 0 0");
    write(
        &proc.join("42/net/dev"),
        "Inter-| Receive\n face |x\n lo: 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1\n eth0: 10 2 3 4 0 0 0 0 20 5 6 7 0 0 0 0\n",
    );
}

fn look(root: &Path, containers: &[Container]) -> Vec<(Labels, String, f64)> {
    let config = Config { host: false, proc: root.join("proc"), cgroup: root.join("cgroup"), ..Config::default() };
    config.collect(containers, "n1", 5_000_000).iter().flat_map(samples).collect()
}

#[test]
fn version_1_hierarchies_give_container_figures_in_base_units() {
    let dir = tempfile::tempdir().unwrap();
    proc_fixture(&dir.path().join("proc"));
    let at = |controller: &str, file: &str| -> PathBuf {
        dir.path().join(format!("cgroup/{controller}/libpod_parent/libpod-{ID}/{file}"))
    };
    write(&at("memory", "memory.usage_in_bytes"), "1000\n");
    write(&at("memory", "memory.max_usage_in_bytes"), "2000\n");
    write(&at("memory", "memory.limit_in_bytes"), "67108864\n");
    write(&at("memory", "memory.failcnt"), "3\n");
    write(
        &at("memory", "memory.stat"),
        "rss 1\ntotal_rss 400\ntotal_cache 500\ntotal_inactive_file 300\ntotal_swap 0\n",
    );
    write(&at("memory", "memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
    write(&at("memory", "cgroup.procs"), "42\n43\n");
    write(&at("cpuacct", "cpuacct.usage"), "2500000000\n");
    write(&at("cpuacct", "cpuacct.stat"), "user 150\nsystem 50\n");
    write(&at("cpu", "cpu.stat"), "nr_periods 10\nnr_throttled 4\nthrottled_time 1500000000\n");
    write(&at("cpu", "cpu.cfs_quota_us"), "-1\n");
    write(&at("cpu", "cpu.cfs_period_us"), "100000\n");
    write(&at("pids", "pids.current"), "7\n");
    write(&at("pids", "pids.max"), "max\n");
    write(
        &at("blkio", "blkio.throttle.io_serviced_recursive"),
        "8:0 Read 11\n8:0 Write 12\n8:0 Total 23\nTotal 23\n",
    );
    write(&at("blkio", "blkio.throttle.io_service_bytes_recursive"), "8:0 Read 4096\n8:0 Write 8192\nTotal 1\n");
    write(
        &at("blkio", "blkio.bfq.io_service_time_recursive"),
        "8:0 Read 1500000000\n8:0 Write 250000000\n8:0 Total 1750000000\nTotal 1750000000\n",
    );
    write(&dir.path().join(format!("cgroup/memory/libpod_parent/libpod-conmon-{ID}/cgroup.procs")), "9\n");
    let all = look(dir.path(), &[container()]);
    let hz = rustix::param::clock_ticks_per_second() as f64;
    let id = format!("/libpod_parent/libpod-{ID}");
    let web = [("name", "web"), ("id", id.as_str()), ("image", "nginx:1"), ("job", "cadvisor"), ("instance", "n1")];
    for (name, want) in [
        ("container_cpu_usage_seconds_total", 2.5),
        ("container_cpu_user_seconds_total", 150.0 / hz),
        ("container_cpu_system_seconds_total", 50.0 / hz),
        ("container_cpu_cfs_throttled_seconds_total", 1.5),
        ("container_memory_usage_bytes", 1000.0),
        ("container_memory_working_set_bytes", 700.0),
        ("container_memory_rss", 400.0),
        ("container_memory_cache", 500.0),
        ("container_memory_failcnt", 3.0),
        ("container_spec_memory_limit_bytes", 67_108_864.0),
        ("container_oom_events_total", 2.0),
        ("container_threads", 7.0),
        ("container_threads_max", 0.0),
        ("container_processes", 2.0),
        ("container_start_time_seconds", 1000.0 + 300.0 / hz),
        ("container_last_seen", 5000.0),
    ] {
        assert_eq!(value(&all, name, &web), Some(want), "{name}");
    }
    assert_eq!(value(&all, "container_spec_cpu_quota", &web), None);
    let disk = [("device", "/dev/sda")];
    assert_eq!(value(&all, "container_fs_reads_total", &disk), Some(11.0));
    assert_eq!(value(&all, "container_fs_writes_bytes_total", &disk), Some(8192.0));
    assert_eq!(value(&all, "container_fs_reads_seconds_total", &disk), Some(1.5));
    assert_eq!(value(&all, "container_fs_writes_seconds_total", &disk), Some(0.25));
    let eth = [("interface", "eth0"), ("name", "web")];
    assert_eq!(value(&all, "container_network_receive_errors_total", &eth), Some(3.0));
    assert_eq!(value(&all, "container_network_transmit_packets_dropped_total", &eth), Some(7.0));
    assert_eq!(value(&all, "container_network_receive_bytes_total", &[("interface", "lo")]), None);
    let ids: BTreeSet<&str> = all.iter().filter_map(|(l, _, _)| l.get("id")).collect();
    assert_eq!(ids.len(), 1, "the monitor's own cgroup is not the container's");
}

#[test]
fn version_2_gives_the_same_figures_from_its_files() {
    let dir = tempfile::tempdir().unwrap();
    proc_fixture(&dir.path().join("proc"));
    write(&dir.path().join("cgroup/cgroup.controllers"), "cpu io memory pids\n");
    let at = |file: &str| dir.path().join(format!("cgroup/machine.slice/libpod-{ID}.scope/{file}"));
    write(&at("memory.current"), "1000\n");
    write(&at("memory.max"), "max\n");
    write(&at("memory.peak"), "2000\n");
    write(&at("memory.stat"), "anon 400\nfile 500\nfile_mapped 5\ninactive_file 300\n");
    write(&at("memory.events"), "low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n");
    write(
        &at("cpu.stat"),
        "usage_usec 2500000\nuser_usec 1500000\nsystem_usec 1000000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 1500000\n",
    );
    write(&at("cpu.max"), "50000 100000\n");
    write(&at("cpu.weight"), "100\n");
    write(&at("io.stat"), "8:0 rbytes=4096 wbytes=8192 rios=11 wios=12 dbytes=0 dios=0\n");
    write(&at("cgroup.procs"), "");
    write(&at("container/cgroup.procs"), "42\n");
    let all = look(dir.path(), &[container()]);
    for (name, want) in [
        ("container_cpu_usage_seconds_total", 2.5),
        ("container_cpu_user_seconds_total", 1.5),
        ("container_cpu_cfs_throttled_seconds_total", 1.5),
        ("container_spec_cpu_quota", 50_000.0),
        ("container_spec_cpu_period", 100_000.0),
        ("container_spec_cpu_shares", 2597.0),
        ("container_memory_working_set_bytes", 700.0),
        ("container_memory_rss", 400.0),
        ("container_memory_max_usage_bytes", 2000.0),
        ("container_spec_memory_limit_bytes", 0.0),
        ("container_memory_failcnt", 3.0),
        ("container_oom_events_total", 2.0),
        ("container_fs_reads_bytes_total", 4096.0),
        ("container_fs_writes_total", 12.0),
        ("container_processes", 1.0),
    ] {
        assert_eq!(value(&all, name, &[("name", "web")]), Some(want), "{name}");
    }
    assert_eq!(value(&all, "container_fs_reads_seconds_total", &[]), None, "the kernel counts no time here");
    // A container nobody names has its cgroup alone.
    let all = look(dir.path(), &[]);
    assert!(all.iter().all(|(l, _, _)| l.get("name").is_none() && l.get("id").is_some()));
}

/// Names, label names and types of the families in a text exposition.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut out: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        if let ["#", "TYPE", name, kind] = words[..] {
            out.entry(name.to_owned()).or_default().0 = kind.replace("untyped", "unknown");
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
        let labels = rest.strip_prefix('{').and_then(|r| r.rsplit_once('}')).map_or("", |(l, _)| l);
        // Label values here hold no `",` of their own.
        let names = labels.split("\",").filter_map(|l| l.split('=').next()).filter(|l| !l.is_empty());
        out.entry(name.to_owned()).or_default().1.extend(names.map(str::to_owned));
    }
    out
}

#[test]
fn host_families_have_the_names_labels_and_types_of_the_real_exporter() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/metrics/node_exporter.prom");
    let Ok(text) = fs::read_to_string(path) else {
        assert!(std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_none(), "{path} is missing");
        eprintln!("SKIPPED: {path} is missing");
        return;
    };
    let real = families(&text);
    let config = Config { containers: false, ..Config::default() };
    let batches = config.collect(&[], "n1", 1_000);
    let ours: Vec<(Labels, String, f64)> = batches.iter().flat_map(samples).collect();
    let mut seen = BTreeSet::new();
    for (labels, kind, _) in &ours {
        let name = labels.get("__name__").unwrap();
        seen.insert(name.to_owned());
        let Some((real_kind, real_labels)) = real.get(name) else {
            // A kernel of another version has other lines; all else has to be there.
            let from_a_listing =
                ["node_memory_", "node_vmstat_", "node_network_"].iter().any(|p| name.starts_with(p));
            assert!(from_a_listing, "{name} is no name of the real exporter");
            continue;
        };
        assert_eq!(kind, real_kind, "{name}");
        let names: BTreeSet<String> = labels
            .iter()
            .map(|(n, _)| n.to_owned())
            .filter(|n| !["__name__", "job", "instance", "node"].contains(&n.as_str()))
            .collect();
        assert_eq!(&names, real_labels, "{name}");
    }
    for must in [
        "node_cpu_seconds_total",
        "node_memory_MemAvailable_bytes",
        "node_load15",
        "node_network_receive_bytes_total",
        "node_filesystem_avail_bytes",
        "node_disk_io_time_seconds_total",
        "node_boot_time_seconds",
        "node_uname_info",
        "node_context_switches_total",
        "node_vmstat_pgfault",
        "node_filefd_maximum",
    ] {
        assert!(seen.contains(must) || must.starts_with("node_disk") && !Path::new("/sys/block").exists(), "{must}");
    }
}
