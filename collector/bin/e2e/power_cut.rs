//! Power cuts: the data lies on ext4 on a loop file, which is shut down without flushing its journal in the middle of the
//! load; after a new mount and a restart the same judge as in [`super::torture`] reads everything back.
//!
//! `SIGHTLINE_POWER_CUTS` (2), `SIGHTLINE_SEED`. Needs root, mkfs.ext4, python3 and loop devices.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::torture::{Run, count};

/// ioctl EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH: from now on nothing reaches the disk, as if the power were cut.
const CUT: &str =
    "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

#[test]
fn power_cut_loses_alters_and_repeats_nothing() {
    let cuts = count("SIGHTLINE_POWER_CUTS", 2);
    let dir = tempfile::tempdir().unwrap();
    let disk = match Disk::new(dir.path()) {
        Ok(disk) => disk,
        Err(Missing { what, installable }) => {
            println!("SKIPPED: power_cut: {what}; NO POWER CUT WAS TRIED");
            eprintln!("SKIPPED: power_cut: {what}; NO POWER CUT WAS TRIED");
            let all = std::env::var_os("SIGHTLINE_REQUIRE_ALL").is_some_and(|v| v == "1");
            assert!(!(all && installable), "SIGHTLINE_REQUIRE_ALL=1 and {what}");
            return;
        }
    };
    let mut run = Run::new("power_cut", dir.path(), &disk.mount.join("data"));
    run.cycles(cuts, &mut |server, rng, place| {
        // While ext4 shuts down, an `fdatasync` under way may return 0 for what never gets to the disk.
        place.power_goes.store(true, Ordering::SeqCst);
        disk.cut();
        // It goes on for a moment on a disk that takes nothing.
        std::thread::sleep(Duration::from_millis(rng.below(100)));
        server.kill();
        disk.remount();
    });
}

/// Why there is no disk to cut, and whether a package would help.
struct Missing {
    what: String,
    installable: bool,
}

/// An ext4 file system on a file; unmounted at the end.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Result<Disk, Missing> {
        let missing = |what: String, installable| Missing { what, installable };
        if !rustix::process::geteuid().is_root() {
            return Err(missing("not root".into(), false));
        }
        let disk = Disk { image: dir.join("disk.img"), mount: dir.join("disk") };
        std::fs::create_dir(&disk.mount).expect("the directory is ours");
        let file = std::fs::File::create(&disk.image).expect("the directory is ours");
        file.set_len(1 << 30).expect("a sparse file");
        let image = disk.image.to_string_lossy().into_owned();
        run("mkfs.ext4", &["-q", "-F", &image]).map_err(|e| missing(e, true))?;
        run("python3", &["-c", "import fcntl"]).map_err(|e| missing(e, true))?;
        disk.mount().map_err(|e| missing(format!("no loop mount of ext4 ({e})"), false))?;
        // Once for nothing, to see whether this kernel can.
        run("python3", &["-c", CUT, &disk.mount.to_string_lossy()])
            .map_err(|e| missing(format!("no shutdown ioctl ({e})"), false))?;
        disk.remount();
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-t", "ext4", "-o", "loop", &self.image.to_string_lossy(), &self.mount.to_string_lossy()])
    }

    fn cut(&self) {
        run("python3", &["-c", CUT, &self.mount.to_string_lossy()]).expect("it worked before");
    }

    /// Unmounts the dead file system and mounts it again, which replays its journal.
    fn remount(&self) {
        let end = Instant::now() + Duration::from_secs(10);
        while let Err(e) = run("umount", &[&self.mount.to_string_lossy()]) {
            assert!(Instant::now() < end, "{e}");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.mount().expect("it worked before");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Not mounted, or in use by what is being killed: lazily, so that nothing stays behind.
        let _ = run("umount", &["-l", &self.mount.to_string_lossy()]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let out = Command::new(program).args(args).output().map_err(|e| format!("cannot run {program}: {e}"))?;
    if out.status.success() {
        return Ok(());
    }
    Err(format!("{program} failed: {}", String::from_utf8_lossy(&out.stderr).trim()))
}
