//! The ring `guest`: the packaged unit under a real systemd, with Debian's kernel and cgroup v2 alone.
//!
//! A guest is emulated by QEMU without hardware help, so that it runs wherever the tests run. Its
//! base is made of Debian's packages once and kept below the target directory; each run gets a
//! throw-away copy and a second disk with the package and `packaging/guest/run.sh`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use perch_testkit::Image;

use crate::packages::{self, Need};
use crate::{dist, licenses, shell};

const NEEDS: &[Need] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
];
/// What the guest consists of.
const PACKAGES: &str = "systemd,systemd-sysv,udev,kmod,linux-image-cloud-amd64,initramfs-tools,\
    iproute2,nftables,curl,procps,passwd,login,e2fsprogs";
const RELEASE: &str = "bookworm";
/// Raised when what [`base`] makes changes.
const BASE_VERSION: u32 = 1;
/// Two boots and all checks; measured 7 minutes on two cores that had other work too.
const RUN_MAX: Duration = Duration::from_secs(900);

/// What the guest starts after each boot.
const UNIT: &str = "[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\n\
    ExecStart=/bin/bash -c 'mkdir -p /media/tests; mount -o ro /dev/vdb /media/tests; \
    /media/tests/run.sh >/dev/ttyS1 2>&1'\n[Install]\nWantedBy=multi-user.target\n";

/// What its checks said.
pub(crate) struct Verdict {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

/// Why this machine cannot run the guest, if it cannot.
pub(crate) fn obstacle() -> Option<&'static str> {
    let fits = cfg!(target_arch = "x86_64");
    (!fits).then_some("the guest is made for x86_64 only")
}

/// Boots the guest with this binary packaged, and counts its checks.
pub(crate) fn run(binary: &Path) -> Result<Verdict> {
    packages::ensure(NEEDS)?;
    let base = base()?;
    let dir = tempfile::Builder::new().prefix("perch-guest-").tempdir()?;
    let payload = payload(dir.path(), binary)?;
    let report = dir.path().join("report");
    fs::write(&report, "")?;
    let console = dir.path().join("console");
    let mut qemu = qemu(&base, &payload, &console, &report).spawn().context("starting QEMU")?;
    let ended = follow(&mut qemu, &report);
    if ended.is_err() {
        qemu.kill()?;
    }
    qemu.wait()?;
    let text = String::from_utf8_lossy(&fs::read(&report)?).replace('\r', "");
    let count = |word: &str| text.lines().filter(|line| line.starts_with(word)).count() as u64;
    let verdict = Verdict { passed: count("ok "), failed: count("FAILED ") };
    if ended.is_err() || !text.lines().any(|line| line == "end") {
        let console = fs::read(&console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        bail!("the guest did not come to its end");
    }
    Ok(verdict)
}

/// Shows the report as it grows, until the guest is off.
fn follow(qemu: &mut std::process::Child, report: &Path) -> Result<()> {
    let started = Instant::now();
    let mut shown = 0;
    loop {
        let off = qemu.try_wait()?.is_some();
        let bytes = fs::read(report)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if shown < whole {
            print!("{}", String::from_utf8_lossy(&bytes[shown..whole]).replace('\r', ""));
            shown = whole;
        }
        if off {
            return Ok(());
        }
        ensure!(started.elapsed() < RUN_MAX, "the guest takes longer than {RUN_MAX:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn qemu(base: &Base, payload: &Path, console: &Path, report: &Path) -> Command {
    let drive =
        |file: &Path, more: &str| format!("file={},if=virtio,format=raw{more}", file.display());
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1536", "-smp", "2"])
        .args(["-nodefaults", "-display", "none"])
        .args(["-serial", &format!("file:{}", console.display())])
        .args(["-serial", &format!("file:{}", report.display())])
        .arg("-kernel")
        .arg(&base.kernel)
        .arg("-initrd")
        .arg(&base.initrd)
        .args(["-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0"])
        .args(["-drive", &drive(&base.disk, ",snapshot=on")])
        .args(["-drive", &drive(payload, ",snapshot=on")])
        .stdin(Stdio::null());
    command
}

/// A Debian that boots.
struct Base {
    disk: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
}

/// Makes the base, or takes the one that is there.
fn base() -> Result<Base> {
    let dir = shell::target_dir()?.join(format!("guest-{RELEASE}-{BASE_VERSION}"));
    let base =
        Base { disk: dir.join("disk"), kernel: dir.join("kernel"), initrd: dir.join("initrd") };
    if dir.exists() {
        return Ok(base);
    }
    println!("making the guest of Debian's packages");
    let parent = dir.parent().context("a target directory without a parent")?;
    let making = tempfile::Builder::new().prefix("guest-").tempdir_in(parent)?;
    let root = making.path().join("root");
    let mut strap = Command::new("mmdebstrap");
    // One download that breaks off is none of the package's faults.
    strap.args(["--quiet", "--variant=minbase", "--aptopt=Acquire::Retries \"5\""]);
    strap.args([&format!("--include={PACKAGES}"), RELEASE]);
    strap.arg(&root);
    ensure!(shell::succeeds(&mut strap)?, "mmdebstrap could not make the guest");
    let unit = root.join("etc/systemd/system/tests.service");
    fs::write(&unit, UNIT)?;
    let wants = root.join("etc/systemd/system/multi-user.target.wants/tests.service");
    std::os::unix::fs::symlink("/etc/systemd/system/tests.service", wants)?;
    fs::write(root.join("etc/hostname"), "guest\n")?;
    fs::write(root.join("etc/resolv.conf"), "nameserver 192.0.2.53\n")?;
    let done = making.path().join("done");
    fs::create_dir(&done)?;
    fs::copy(root.join("vmlinuz"), done.join("kernel"))?;
    fs::copy(root.join("initrd.img"), done.join("initrd"))?;
    file_system(&root, &done.join("disk"), "3G")?;
    fs::rename(&done, &dir)?;
    Ok(base)
}

/// The disk with what this run is about.
fn payload(dir: &Path, binary: &Path) -> Result<PathBuf> {
    let tree = dir.join("payload");
    fs::create_dir(&tree)?;
    licenses::write_beside(binary)?;
    let package = dist::deb(dir, binary)?;
    fs::rename(package, tree.join("perch.deb"))?;
    Image::hello_of(&binary.with_file_name("perch-hello"), 8081)?.write(&tree.join("image"))?;
    // Its script is in the app's environment.
    Image::shell("eval \"$SCRIPT\"")?.write(&tree.join("shell"))?;
    let script = tree.join("run.sh");
    fs::copy(shell::root().join("packaging/guest/run.sh"), &script)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let disk = dir.join("disk");
    file_system(&tree, &disk, "512M")?;
    Ok(disk)
}

fn file_system(tree: &Path, disk: &Path, size: &str) -> Result<()> {
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"]).arg(tree).arg(disk).arg(size);
    shell::output(&mut make).map(drop)
}
