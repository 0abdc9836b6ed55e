//! Texts of `/proc` to values. Source of each format: the kernel's `Documentation/filesystems/proc.rst`,
//! `Documentation/admin-guide/iostats.rst` and `Documentation/accounting/psi.rst`.

/// The value of `name` among lines `name value ...`.
pub fn field(text: &str, name: &str) -> Option<f64> {
    fields(text).find(|(n, _)| *n == name).map(|(_, v)| v)
}

/// Lines `name value ...`; lines of another form are skipped.
pub fn fields(text: &str) -> impl Iterator<Item = (&str, f64)> {
    text.lines().filter_map(|l| {
        let mut words = l.split_ascii_whitespace();
        Some((words.next()?, words.next()?.parse().ok()?))
    })
}

/// `/proc/meminfo` as (name for a metric, value): `Active(anon): 12 kB` is (`Active_anon_bytes`, 12288), a line without
/// unit keeps its name and is a count.
pub fn meminfo(text: &str) -> impl Iterator<Item = (String, f64)> {
    text.lines().filter_map(|l| {
        let (name, rest) = l.split_once(':')?;
        let name = name.replace('(', "_").replace(')', "");
        let mut words = rest.split_ascii_whitespace();
        let value: f64 = words.next()?.parse().ok()?;
        Some(match words.next() {
            Some("kB") => (name + "_bytes", value * 1024.0),
            _ => (name, value),
        })
    })
}

/// One line of `/proc/net/dev`: 8 columns received, 8 transmitted.
pub struct NetDevice<'a> {
    pub device: &'a str,
    /// bytes packets errs drop fifo frame compressed multicast
    pub receive: [f64; 8],
    /// bytes packets errs drop fifo colls carrier compressed
    pub transmit: [f64; 8],
}

pub fn net_dev(text: &str) -> impl Iterator<Item = NetDevice<'_>> {
    text.lines().filter_map(|l| {
        let (device, rest) = l.split_once(':')?;
        let mut values = rest.split_ascii_whitespace().map(|w| w.parse().ok());
        let mut eight = || -> Option<[f64; 8]> {
            let mut out = [0.0; 8];
            for v in &mut out {
                *v = values.next()??;
            }
            Some(out)
        };
        Some(NetDevice { device: device.trim(), receive: eight()?, transmit: eight()? })
    })
}

/// One line of `/proc/diskstats`: `values` are its counters from "reads completed" on; kernels before 4.18 have 11 of them,
/// before 5.5 15, else 17.
pub struct Disk<'a> {
    /// `major:minor`
    pub number: String,
    pub device: &'a str,
    pub values: Vec<f64>,
}

pub fn diskstats(text: &str) -> impl Iterator<Item = Disk<'_>> {
    text.lines().filter_map(|l| {
        let mut words = l.split_ascii_whitespace();
        let number = format!("{}:{}", words.next()?, words.next()?);
        let device = words.next()?;
        let values: Vec<f64> = words.map_while(|w| w.parse().ok()).collect();
        (values.len() >= 11).then_some(Disk { number, device, values })
    })
}

/// Whether a block device counts only what another one counts too (partitions), or is not a disk (ram, loop, floppy).
pub fn is_partition_or_pseudo(device: &str) -> bool {
    let digits_after = |prefix: &str| {
        device.strip_prefix(prefix).is_some_and(|r| !r.is_empty() && r.bytes().all(|b| b.is_ascii_digit()))
    };
    let base = device.trim_end_matches(|c: char| c.is_ascii_digit());
    let numbered = base.len() < device.len();
    let lettered = ["hd", "sd", "vd", "xvd"]
        .iter()
        .any(|p| base.strip_prefix(p).is_some_and(|r| r.len() == 1 && r.bytes().all(|b| b.is_ascii_lowercase())));
    let nvme_part = device.starts_with("nvme") && numbered && base.ends_with('p');
    ["ram", "zram", "loop", "fd"].iter().any(|p| digits_after(p)) || numbered && lettered || nvme_part
}

/// One mounted file system.
#[derive(Debug, PartialEq)]
pub struct Mount {
    pub device: String,
    pub mountpoint: String,
    pub fstype: String,
    pub read_only: bool,
}

/// `/proc/mounts`, without file systems that are not on a device or may hang (network).
pub fn mounts(text: &str) -> Vec<Mount> {
    const SKIPPED: [&str; 33] = [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "fusectl",
        "hugetlbfs",
        "iso9660",
        "mqueue",
        "nsfs",
        "overlay",
        "proc",
        "procfs",
        "pstore",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "squashfs",
        "sysfs",
        "tracefs",
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "ceph",
        "afs",
        "erofs",
    ];
    let mut out: Vec<Mount> = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [device, mountpoint, fstype, options, ..] = words[..] else { continue };
        if SKIPPED.contains(&fstype) || fstype.starts_with("fuse.") {
            continue;
        }
        let read_only = options.split(',').any(|o| o == "ro");
        let (device, mountpoint, fstype) = (unescape(device), unescape(mountpoint), fstype.to_owned());
        // Of two mounts at one place the later covers the earlier.
        out.retain(|m| m.mountpoint != mountpoint);
        out.push(Mount { device, mountpoint, fstype, read_only });
    }
    out
}

/// `\040` and the like as the byte they stand for.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&b, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(code) if b == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(b);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Microseconds stalled so far, of line `some` or `full` of a pressure file.
pub fn pressure_total(text: &str, line: &str) -> Option<f64> {
    let line = text.lines().find(|l| l.split(' ').next() == Some(line))?;
    line.split("total=").nth(1)?.trim().parse().ok()
}

/// Start of a process in clock ticks after boot: field 22 of `/proc/<pid>/stat`. The name in field 2 may hold anything,
/// so fields are counted from its closing parenthesis.
pub fn start_ticks(stat: &str) -> Option<f64> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_names_and_units() {
        let got: Vec<_> = meminfo("MemTotal:  10 kB\nActive(anon): 2 kB\nHugePages_Total:   3\nbad\n").collect();
        let want = [("MemTotal_bytes", 10240.0), ("Active_anon_bytes", 2048.0), ("HugePages_Total", 3.0)];
        assert_eq!(got, want.map(|(n, v)| (n.to_owned(), v)));
    }

    #[test]
    fn partitions_are_told_from_disks() {
        for disk in ["sda", "vda", "nvme0n1", "dm-0", "md0", "xvda", "mmcblk0"] {
            assert!(!is_partition_or_pseudo(disk), "{disk}");
        }
        for other in ["sda1", "vda12", "nvme0n1p2", "loop0", "ram3", "zram0", "fd0"] {
            assert!(is_partition_or_pseudo(other), "{other}");
        }
    }

    #[test]
    fn network_columns_and_mount_escapes() {
        let dev: Vec<_> =
            net_dev("Inter-|   Receive\n face |bytes\n  eth0:1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n").collect();
        assert_eq!((dev.len(), dev[0].device, dev[0].receive[7], dev[0].transmit[0]), (1, "eth0", 8.0, 9.0));
        let m = mounts("/dev/vda / ext4 rw,x 0 0\nproc /proc proc rw 0 0\n/dev/vdb /a\\040b xfs ro 0 0\n");
        assert_eq!((m.len(), m[1].mountpoint.as_str(), m[1].read_only), (2, "/a b", true));
    }

    #[test]
    fn process_start_survives_odd_names() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 5500 100 9";
        assert_eq!(start_ticks(stat), Some(5500.0));
        assert_eq!(pressure_total("some avg10=0.00 total=15\nfull avg10=0.00 total=9\n", "full"), Some(9.0));
    }
}
