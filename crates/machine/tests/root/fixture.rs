//! What each test gets: a directory, a network namespace, an image of busybox, and a runtime.

use std::cell::Cell;
use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use perch_machine::{
    ExitRecord, Ids, ImageConfig, ImageError, ImageLimits, ImageStore, LaunchError, LaunchSpec,
    Machine, Secrets, Stock, Unpacked,
};

pub(crate) type Tested = Result<(), Box<dyn Error>>;

const BUSYBOX: &str = "/bin/busybox";
/// A condition that does not come true within this time never will.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the tests cannot run here.
pub(crate) fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("they need root".to_owned());
    }
    let static_busybox = Command::new("chroot").args(["/bin", "/busybox", "true"]).status();
    if !static_busybox.is_ok_and(|status| status.success()) {
        return Some(format!("{BUSYBOX} is not static (package busybox-static)"));
    }
    let ip = Command::new("ip").arg("-V").output();
    ip.is_err().then(|| "the program ip is missing (package iproute2)".to_owned())
}

/// A static program of this workspace, compiled once per run as the build of `perch` does it.
pub(crate) fn program(name: &'static str) -> io::Result<Vec<u8>> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let dir = BUILT.get_or_init(|| scratch("programs"));
    let file = dir.join(name);
    if !file.exists() {
        fs::create_dir_all(dir)?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../{name}/src/main.rs"));
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let status = Command::new(rustc)
            .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static"])
            .args(["-C", "relocation-model=static", "-C", "panic=abort", "--crate-name", name])
            .arg("-o")
            .arg(&file)
            .arg(source)
            .status()?;
        if !status.success() {
            return Err(io::Error::other(format!("rustc could not compile {name}")));
        }
    }
    fs::read(file)
}

/// Removes what [`program`] compiled.
pub(crate) fn discard_programs() {
    match fs::remove_dir_all(scratch("programs")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            println!("could not remove the programs: {error}");
        }
        Ok(()) | Err(_) => {}
    }
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("perch-machine-root-{}-{name}", std::process::id()))
}

/// How Machines are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Usual,
    /// Each by a shim that was spawned ahead.
    Blanks,
}

pub(crate) struct Fixture {
    pub(crate) dir: PathBuf,
    name: String,
    runtime: tokio::runtime::Runtime,
    init_layer: PathBuf,
    ids: Ids,
    launches: Cell<u32>,
    way: Way,
}

impl Fixture {
    pub(crate) fn new(ids: Ids, way: Way) -> io::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("machine-{}-{number}", std::process::id());
        let dir = scratch(&number.to_string());
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))?;
        let init_layer = perch_machine::install_init(&dir.join("init"), &program("init")?)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let launches = Cell::new(0);
        let fixture = Self { dir, name, runtime, init_layer, ids, launches, way };
        fixture.ip(&["netns", "add", &fixture.name])?;
        fixture.ip(&["-n", &fixture.name, "link", "set", "lo", "up"])?;
        fixture.make_layer("base")?;
        Ok(fixture)
    }

    fn ip(&self, args: &[&str]) -> io::Result<()> {
        let status = Command::new("ip").args(args).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip {args:?} failed"))) }
    }

    fn make_layer(&self, name: &str) -> io::Result<()> {
        let layer = self.dir.join(name);
        for dir in ["bin", "etc", "tmp"] {
            fs::create_dir_all(layer.join(dir))?;
        }
        fs::set_permissions(layer.join("tmp"), fs::Permissions::from_mode(0o1777))?;
        fs::copy(BUSYBOX, layer.join("bin/busybox"))?;
        std::os::unix::fs::symlink("busybox", layer.join("bin/sh"))?;
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home:/\n")
    }

    /// The Machine's directory; it has the Machine's name, as the cgroup has.
    pub(crate) fn machine_dir(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    pub(crate) fn layer(&self) -> PathBuf {
        self.dir.join("base")
    }

    /// A Machine that runs a shell script.
    pub(crate) fn spec(&self, script: &str) -> LaunchSpec {
        LaunchSpec {
            machine: self.name.clone(),
            run: 1,
            app: "test".to_owned(),
            dir: self.machine_dir(),
            image: String::new(),
            layers: vec![self.layer()],
            init_layer: self.init_layer.clone(),
            argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            env: Vec::new(),
            workdir: String::new(),
            user: String::new(),
            hostname: "test".to_owned(),
            private_ip: None,
            files: Vec::new(),
            inside: None,
            volumes: Vec::new(),
            uid_base: 3_000_000,
            ids: self.ids,
            memory_bytes: None,
            swap_bytes: None,
            cpu_millis: None,
            cpu_shares: None,
            pids_max: None,
            kill_signal: 15,
            kill_timeout_ms: 5_000,
            cgroup_parent: "perch-test".to_owned(),
        }
    }

    pub(crate) fn launch(&self, spec: &LaunchSpec) -> Result<Machine, Box<dyn Error>> {
        Ok(self.try_launch(spec)?)
    }

    pub(crate) fn try_launch(&self, spec: &LaunchSpec) -> Result<Machine, LaunchError> {
        self.launch_with(spec, &Secrets::default())
    }

    pub(crate) fn launch_with(
        &self,
        spec: &LaunchSpec,
        secrets: &Secrets,
    ) -> Result<Machine, LaunchError> {
        let path = self.netns();
        let netns =
            File::open(&path).map_err(|source| LaunchError::Io { doing: "open", path, source })?;
        let spec = LaunchSpec { layers: self.own_layers(spec), ..spec.clone() };
        if self.way == Way::Usual {
            return self.block_on(perch_machine::launch_with(&spec, netns.as_fd(), secrets));
        }
        let stock = self.stock(1)?;
        let blanks = self.blanks();
        let machine = self.launch_from(&spec, secrets, &stock)?;
        let taken = blanks.iter().any(|shim| Some(*shim) == parent(machine.pid()));
        // One that has ended already has no parent.
        assert!(taken || parent(machine.pid()).is_none(), "the blank was passed over");
        Ok(machine)
    }

    /// So many shims that wait for a Machine.
    pub(crate) fn stock(&self, len: usize) -> Result<Stock, LaunchError> {
        let stock = Stock::new("perch-test".to_owned(), len);
        while self.block_on(stock.add())? {}
        assert_eq!(stock.len(), len);
        Ok(stock)
    }

    /// As the server does.
    pub(crate) fn launch_from(
        &self,
        spec: &LaunchSpec,
        secrets: &Secrets,
        stock: &Stock,
    ) -> Result<Machine, LaunchError> {
        let path = self.netns();
        let netns =
            File::open(&path).map_err(|source| LaunchError::Io { doing: "open", path, source })?;
        let spec = LaunchSpec { layers: self.own_layers(spec), ..spec.clone() };
        self.block_on(perch_machine::launch_from(&spec, netns.as_fd(), secrets, stock))
    }

    /// Process ids of the shims that wait for a Machine: each began a session, unlike who spawned it and whom it parked.
    pub(crate) fn blanks(&self) -> Vec<i32> {
        let leads = |pid: &i32| {
            let own = rustix::process::Pid::from_raw(*pid);
            own.is_some() && rustix::process::getsid(own).ok() == own
        };
        blank_processes().into_iter().filter(leads).collect()
    }

    /// The network namespace that Machines join.
    pub(crate) fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Layers as this fixture's kernel would need them. Tests change layers between launches, so nothing is kept.
    pub(crate) fn own_layers(&self, spec: &LaunchSpec) -> Vec<PathBuf> {
        if spec.ids == Ids::Mapped {
            return spec.layers.clone();
        }
        self.launches.set(self.launches.get() + 1);
        let dir = self.dir.join(format!("copies-{}", self.launches.get()));
        let shifted = || -> Result<Unpacked, ImageError> {
            let store = ImageStore::open(&dir, ImageLimits::standard())?;
            let manifest = format!("sha256:{}", "0".repeat(64)).parse()?;
            let (layers, config) = (spec.layers.clone(), ImageConfig::default());
            store.shift(&Unpacked { layers, config, manifest }, spec.uid_base)
        };
        shifted().expect("an ordinary layer can be copied").layers
    }

    /// Process id, as the host sees it, of what the Machine's PID 1 runs.
    pub(crate) fn program_of(&self, machine: &Machine) -> Result<String, Box<dyn Error>> {
        let file = format!("/proc/{0}/task/{0}/children", machine.pid());
        let children = fs::read_to_string(file)?;
        Ok(children.split_ascii_whitespace().next().ok_or("it runs nothing")?.to_owned())
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn wait(&self, machine: &Machine) -> Result<ExitRecord, Box<dyn Error>> {
        let wait = async { tokio::time::timeout(PATIENCE, machine.wait()).await };
        Ok(self.runtime.block_on(wait)??)
    }

    pub(crate) fn adopt(&self) -> Result<Option<Machine>, Box<dyn Error>> {
        Ok(self.runtime.block_on(perch_machine::adopt(&self.machine_dir(), "perch-test"))?)
    }

    pub(crate) fn remove(&self) -> Tested {
        Ok(self.runtime.block_on(perch_machine::remove(&self.machine_dir(), "perch-test"))?)
    }

    /// Runs a script to its end: its record and its output lines.
    pub(crate) fn run(
        &self,
        spec: &LaunchSpec,
    ) -> Result<(ExitRecord, Vec<String>), Box<dyn Error>> {
        let machine = self.launch(spec)?;
        let record = self.wait(&machine)?;
        Ok((record, self.lines()?))
    }

    /// What the program wrote, without stamps.
    pub(crate) fn lines(&self) -> io::Result<Vec<String>> {
        let mut reader = perch_machine::logs::LogReader::from_start(&self.machine_dir());
        Ok(reader.read(10_000)?.into_iter().map(|line| line.text).collect())
    }

    /// Waits until a line of output is `line`.
    pub(crate) fn await_line(&self, line: &str) -> Tested {
        self.until(&format!("the line {line:?}"), || Ok(self.lines()?.iter().any(|l| l == line)))
    }

    /// Waits for a condition, up to a deadline.
    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> io::Result<bool>) -> Tested {
        let deadline = Instant::now() + PATIENCE;
        while !holds()? {
            if Instant::now() > deadline {
                return Err(format!("waited in vain for {what}").into());
            }
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
        }
        Ok(())
    }

    /// All cgroup directories that this fixture's Machine has on the host.
    pub(crate) fn cgroups(&self) -> io::Result<Vec<PathBuf>> {
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        roots.extend(fs::read_dir("/sys/fs/cgroup")?.flatten().map(|entry| entry.path()));
        let dirs = roots.iter().map(|root| root.join("perch-test").join(&self.name));
        Ok(dirs.filter(|dir| dir.is_dir()).collect())
    }

    pub(crate) fn logs(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.machine_dir().join(name));
        format!("  log: {:?}\n  shim.log: {:?}", read("log").ok(), read("shim.log").ok())
    }
}

/// Shims that wait for a Machine, and their children.
pub(crate) fn blank_processes() -> Vec<i32> {
    let own = std::env::current_exe().ok();
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_blank = |pid: &i32| {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = words.split(|byte| *byte == 0).skip(1).take(2).collect();
        words == [b"blank".as_slice(), b"perch-test"]
            && fs::read_link(format!("/proc/{pid}/exe")).ok() == own
    };
    numbers.filter(is_blank).collect()
}

/// The parent of a process, if it lives.
pub(crate) fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:\t")?.parse().ok())
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let removed = self.remove().and_then(|()| Ok(self.ip(&["netns", "del", &self.name])?));
        let removed = removed.and_then(|()| Ok(fs::remove_dir_all(&self.dir)?));
        if let Err(error) = removed {
            println!("could not clean up {}: {error}", self.name);
        }
    }
}
