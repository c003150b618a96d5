//! Programs that wait for memory although the reserve is there: a sleeper gives way.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;

const PRESSURE: &str = "/proc/pressure/memory";
const V1: &str = "/sys/fs/cgroup/memory";

/// Four that read a file again and again which does not fit into the memory of their cgroup.
const THRASHER: &str = "\
import mmap, os, sys
size = 64 << 20
with open(sys.argv[1], 'w+b') as file:
    for _ in range(64):
        file.write(os.urandom(size // 64))
    file.flush()
    os.fsync(file.fileno())
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.fork()
os.fork()
while True:
    for at in range(0, size, 4096):
        mapped[at]
";
const THRASHER_MIB: u64 = 24;

/// With the sleeper there is more than the reserve, and less than twice as much.
const NEARLY_SHORT: &str = "memory = \"300MiB\"\nmemory_reserve = \"100MiB\"\narmed_max = 0\n\
                            page_out_after = \"off\"\n";
const SLEEPER_MB: u64 = 130;

#[test]
fn a_sleeper_gives_way_while_programs_wait_for_memory_that_is_nearly_short() {
    for needed in [PRESSURE, &format!("{V1}/memory.limit_in_bytes")] {
        if fs::read_to_string(needed).is_err() {
            println!("skipped: this machine has no {needed}");
            return;
        }
    }
    on(
        || without_swap(NEARLY_SHORT),
        |host| {
            holder_of(host, "sleeper", SLEEPER_MB)?;
            suspend(host, "sleeper")?;
            let thrasher = Thrasher::start(host)?;
            wait_until("the sleeper to be stopped", SOON, || {
                let pressure = fs::read_to_string(PRESSURE)?;
                let state = host.states("sleeper")?;
                if state == ["stopped"] { Ok(Some(())) } else { bail!("{state:?}, {pressure}") }
            })?;
            drop(thrasher);
            let sleeper = host.machines("sleeper")?.pop().context("no Machine")?;
            check_gave_way(&sleeper)?;
            let said = sleeper.value["events"].to_string();
            ensure!(said.contains("and programs wait for memory"), "for another reason: {said}");
            Ok(())
        },
    );
}

/// Programs that wait for memory, in a cgroup of their own.
struct Thrasher {
    dir: PathBuf,
    program: Child,
}

impl Thrasher {
    fn start(host: &Host) -> Result<Self> {
        let dir = Path::new(V1).join(format!("perch-test-thrasher-{}", std::process::id()));
        fs::create_dir(&dir).context("making a memory cgroup")?;
        fs::write(dir.join("memory.limit_in_bytes"), (THRASHER_MIB << 20).to_string())?;
        let procs = dir.join("cgroup.procs");
        let enter = format!("echo $$ > {} && exec python3 -c \"$0\" \"$1\"", procs.display());
        let file = host.data_dir().join("thrashed");
        let mut command = Command::new("sh");
        command.args(["-c", &enter, THRASHER, &file.to_string_lossy()]).stdin(Stdio::null());
        Ok(Self { dir, program: command.spawn()? })
    }
}

impl Drop for Thrasher {
    fn drop(&mut self) {
        let gone = wait_until("an empty cgroup", SOON, || {
            let pids = fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
            drop(Command::new("kill").arg("-9").args(pids.lines()).stderr(Stdio::null()).status());
            drop(self.program.try_wait());
            Ok(fs::remove_dir(&self.dir).is_ok().then_some(()))
        });
        if gone.is_err() {
            eprintln!("left behind: {}", self.dir.display());
        }
    }
}
