//! Measures create and start of a Machine against `runc` on the same bundle, turn by turn, as root:
//! `start ROOTFS INIT NETNS [ROUNDS]`, where ROOTFS holds a static `/bin/busybox`.
//!
//! It prints medians in milliseconds: our `launch` until the program is executing, and `runc create` plus `runc start`
//! of the same program under the same init with the same mounts, limits, user namespace and network namespace (runc's
//! root is a plain directory; ours includes the overlay). The goal is a ratio of at most 0.7.

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use perch_machine::LaunchSpec;

const UID_BASE: u32 = 3_000_000;
const ROUNDS: usize = 40;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().collect();
    if let [_, word, dir] = &args[..]
        && word == "shim"
    {
        return perch_machine::shim::main(dir.as_ref(), None);
    }
    match measure(&args[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &[String]) -> Result<(), Box<dyn Error>> {
    let [rootfs, init, netns, rest @ ..] = args else {
        return Err("usage: start ROOTFS INIT NETNS [ROUNDS]".into());
    };
    let rounds = rest.first().map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    let dir = std::env::temp_dir().join(format!("perch-start-{}", std::process::id()));
    let layer = perch_machine::install_init(&dir.join("init"), &fs::read(init)?)?;
    let mut spec = spec(dir.join("machine"), PathBuf::from(rootfs), layer);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let file = File::open(netns)?;
    let bundle = dir.join("bundle");
    let (mut ours, mut theirs, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        spec.run += 1;
        let begun = Instant::now();
        let machine = runtime.block_on(perch_machine::launch(&spec, file.as_fd()))?;
        ours.push(begun.elapsed());
        if round == 0 {
            prepare_bundle(&bundle, Path::new(rootfs), Path::new(init), machine.pid(), netns)?;
        }
        let begun = Instant::now();
        machine.kill()?;
        runtime.block_on(machine.wait())?;
        ends.push(begun.elapsed());
        theirs.push(runc(&bundle)?);
    }
    runtime.block_on(perch_machine::remove(&spec.dir, &spec.cgroup_parent))?;
    fs::remove_dir_all(&dir)?;
    report("launch", &mut ours);
    report("runc create+start", &mut theirs);
    report("kill until gone", &mut ends);
    println!("ratio of medians {:.2}", median(&ours).as_secs_f64() / median(&theirs).as_secs_f64());
    Ok(())
}

fn spec(dir: PathBuf, rootfs: PathBuf, init_layer: PathBuf) -> LaunchSpec {
    LaunchSpec {
        machine: format!("start-{}", std::process::id()),
        run: 0,
        app: "start".to_owned(),
        dir,
        image: String::new(),
        layers: vec![rootfs],
        init_layer,
        argv: ["/bin/busybox", "sleep", "1000"].map(str::to_owned).to_vec(),
        env: Vec::new(),
        workdir: String::new(),
        user: String::new(),
        hostname: "start".to_owned(),
        private_ip: None,
        files: Vec::new(),
        inside: None,
        volumes: Vec::new(),
        uid_base: UID_BASE,
        ids: perch_machine::Ids::Mapped,
        memory_bytes: Some(256 << 20),
        swap_bytes: Some(0),
        cpu_millis: Some(1000),
        cpu_shares: None,
        pids_max: Some(512),
        kill_signal: 15,
        kill_timeout_ms: 5_000,
        cgroup_parent: "perch-start".to_owned(),
    }
}

/// The bundle that the running Machine was made of, with what runc needs instead of what the shim prepared.
fn prepare_bundle(
    bundle: &Path,
    rootfs: &Path,
    init: &Path,
    pid: i32,
    netns: &str,
) -> Result<(), Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).ok_or("no shim")?;
    let text = fs::read(format!("/proc/{shim}/root/sys/bus/bundle/config.json"))?;
    let mut config: serde_json::Value = serde_json::from_slice(&text)?;
    let root = bundle.join("rootfs");
    fs::create_dir_all(root.join(".perch"))?;
    let copied = Command::new("cp").arg("-a").arg(rootfs.join(".")).arg(&root).status()?;
    fs::copy(init, root.join(".perch/init"))?;
    let owner = format!("{UID_BASE}:{UID_BASE}");
    let owned = Command::new("chown").args(["-R", &owner]).arg(&root).status()?;
    if !copied.success() || !owned.success() {
        return Err("could not copy the root directory".into());
    }
    let map = serde_json::json!([{ "containerID": 0, "hostID": UID_BASE, "size": 65536 }]);
    config["root"]["path"] = root.to_string_lossy().into_owned().into();
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    config["linux"]["resources"] = serde_json::json!({
        "memory": { "limit": 256 << 20 }, "cpu": { "quota": 100_000, "period": 100_000 }, "pids": { "limit": 512 },
    });
    config["linux"]["cgroupsPath"] = "/perch-start/runc".into();
    config["linux"]["namespaces"] = serde_json::json!([
        { "type": "user" }, { "type": "mount" }, { "type": "pid" }, { "type": "uts" }, { "type": "ipc" },
        { "type": "network", "path": netns },
    ]);
    fs::write(bundle.join("config.json"), serde_json::to_vec(&config)?)?;
    // The container enters it with its own ids.
    for dir in bundle.ancestors().take(2) {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    Ok(())
}

fn runc(bundle: &Path) -> Result<Duration, Box<dyn Error>> {
    let name = format!("perch-start-{}", std::process::id());
    let call = |args: &[&str]| -> Result<(), Box<dyn Error>> {
        let log = File::create(bundle.join("runc.log"))?;
        let mut command = Command::new("runc");
        command
            .args(args)
            .current_dir(bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if command.status()?.success() {
            return Ok(());
        }
        Err(format!("runc {args:?}: {}", fs::read_to_string(bundle.join("runc.log"))?).into())
    };
    let begun = Instant::now();
    call(&["create", &name])?;
    call(&["start", &name])?;
    let took = begun.elapsed();
    call(&["delete", "--force", &name])?;
    Ok(took)
}

fn median(times: &[Duration]) -> Duration {
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn report(name: &str, times: &mut [Duration]) {
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let (low, high) = (times[0], times[times.len() * 95 / 100]);
    println!("{name}: median {:.1} ms, min {:.1}, p95 {:.1}", ms(median(times)), ms(low), ms(high));
}
