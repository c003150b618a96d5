//! A Linux host for one test: namespaces of its own, with `perch server` inside.
//!
//! `setpriv --pdeathsig` → `unshare` → `bash` as process 1 of a process namespace, which reaps what
//! is orphaned. Everything in the host descends from that `bash`; when it dies, the kernel kills the
//! rest. The mount namespace dies with it; cgroups do not, so those of its server are removed by
//! name.

mod freezing;
mod leftovers;
mod service_manager;
mod swap;
mod turn;

use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tempfile::TempDir;

pub use self::freezing::Freezing;
use self::service_manager::ServiceManager;
use self::swap::SwapsOff;
pub use self::turn::Shared;
use self::turn::Turn;
use crate::{Ip, Machine, Output, Process, Response, holds_for, process, wait_until};

/// A start that takes longer has failed; measured 0.2 s on an idle host.
const READY_MAX: Duration = Duration::from_secs(30);

/// A command of `fly` that takes longer hangs.
const COMMAND_MAX: Duration = Duration::from_secs(120);

/// How the host's own firewall looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// No rules.
    Open,
    /// Input and forward policy drop, as ufw and Docker leave it.
    Firewalled,
}

/// A host; dropped, everything in it is gone.
pub struct Host {
    holder: Child,
    init: i32,
    server: Option<Child>,
    dir: TempDir,
    binary: PathBuf,
    config: String,
    server_env: Vec<(String, String)>,
    service_manager: Option<ServiceManager>,
    swaps_off: Option<SwapsOff>,
    /// Ended last, when this host has left nothing.
    turns: Vec<Turn>,
}

impl Host {
    /// Makes a host and starts the server in it.
    pub fn start() -> Result<Self> {
        Self::start_with(Network::Open, "")
    }

    /// Makes a host with this firewall and starts the server with this configuration file.
    pub fn start_with(network: Network, config: &str) -> Result<Self> {
        let mut host = Self::bare(network)?;
        config.clone_into(&mut host.config);
        host.start_server()?;
        Ok(host)
    }

    /// Gives the next server that starts another configuration file.
    pub fn configure(&mut self, config: &str) {
        config.clone_into(&mut self.config);
    }

    /// Gives servers that start from now on a variable more.
    pub fn equip_server(&mut self, name: &str, value: &str) {
        self.server_env.push((name.to_owned(), value.to_owned()));
    }

    /// Makes a host in which nothing runs yet.
    pub fn bare(network: Network) -> Result<Self> {
        let binary = std::env::var_os("PERCH_BIN")
            .context("PERCH_BIN must name the perch binary; `cargo x test host` sets it")?;
        let dir = tempfile::Builder::new().prefix("perch-").tempdir()?;
        let (holder, init) = hold()?;
        let binary = fs::canonicalize(binary).context("finding PERCH_BIN")?;
        let host = Self {
            holder,
            init,
            server: None,
            dir,
            binary,
            config: String::new(),
            server_env: Vec::new(),
            service_manager: None,
            swaps_off: None,
            turns: Vec::new(),
        };
        host.run("ip", &["link", "set", "lo", "up"])?.ok()?;
        if network == Network::Firewalled {
            host.firewall()?;
        }
        Ok(host)
    }

    /// Waits until no other host on this machine needs this for itself; then it is this one's until its end.
    pub fn take_turn(&mut self, shared: Shared) -> Result<()> {
        self.turns.push(Turn::wait(shared)?);
        match shared {
            Shared::Swap => leftovers::remove_swap_of_the_dead(),
        }
        Ok(())
    }

    /// Turns off whatever swap this machine has, until this host's end. Nobody else must want it meanwhile.
    pub fn turn_off_swap(&mut self) -> Result<()> {
        self.take_turn(Shared::Swap)?;
        self.swaps_off = Some(SwapsOff::now()?);
        Ok(())
    }

    /// From now on servers are started by a service manager that keeps descriptors for them.
    pub fn use_service_manager(&mut self) -> Result<()> {
        self.service_manager = Some(ServiceManager::new(self.dir.path())?);
        Ok(())
    }

    fn firewall(&self) -> Result<()> {
        let rules = "table inet filter {\n\
            chain input {\n type filter hook input priority 0; policy drop;\n\
            iif lo accept\n ct state established,related accept\n }\n\
            chain forward {\n type filter hook forward priority 0; policy drop;\n }\n }";
        self.run("nft", &[rules])?.ok()?;
        Ok(())
    }

    /// A directory for the test's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The server's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The socket on which the server answers.
    pub fn socket(&self) -> PathBuf {
        self.data_dir().join("api.sock")
    }

    /// A command that will run inside the host, in the test's directory.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        self.command_in(self.dir.path(), program, args)
    }

    fn command_in(&self, dir: &Path, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--mount", "--net", "--pid", "--"]);
        // Entering a mount namespace forgets the working directory.
        command.args(["env", "-C"]).arg(dir).arg(program).args(args).stdin(Stdio::null());
        command.env("PERCH_SOCKET", self.socket()).env("NO_COLOR", "1").env_remove("FLY_APP");
        command
    }

    /// Runs any program inside the host.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        finish(&mut self.command(program, args), &format!("{program} {}", args.join(" ")))
    }

    /// Runs any program in the network of the data plane.
    pub fn run_in_plane(&self, program: &str, args: &[&str]) -> Result<Output> {
        let plane = format!("--net={}", self.data_dir().join("netns").display());
        self.run("nsenter", &[&[plane.as_str(), program], args].concat())
    }

    /// Runs `perch …`.
    pub fn perch(&self, args: &[&str]) -> Result<Output> {
        let text = format!("perch {}", args.join(" "));
        finish(&mut self.command(&self.binary_text(), args), &text)
    }

    /// Runs `fly …` in the test's directory.
    pub fn fly(&self, args: &[&str]) -> Result<Output> {
        self.fly_in(self.dir.path(), args)
    }

    /// Runs `fly …` in a directory of an app.
    pub fn fly_in(&self, dir: &Path, args: &[&str]) -> Result<Output> {
        finish(&mut self.fly_command(dir, args), &format!("fly {}", args.join(" ")))
    }

    /// A `fly …` command in this directory that is not started yet.
    pub fn fly_command(&self, dir: &Path, args: &[&str]) -> Command {
        self.command_in(dir, &self.binary_text(), &[&["fly"], args].concat())
    }

    fn binary_text(&self) -> String {
        self.binary.to_string_lossy().into_owned()
    }

    /// Starts the server and waits until it says that it is ready.
    pub fn start_server(&mut self) -> Result<()> {
        let log = self.server_log();
        let seen = fs::read_to_string(&log).unwrap_or_default().len();
        let file = File::options().create(true).append(true).open(&log)?;
        let mut command = self.server_command()?;
        let mut copies = Vec::new();
        if let Some(manager) = &self.service_manager {
            (command, copies) = manager.equip(&command)?;
            command.stdin(Stdio::null()).env("PERCH_SOCKET", self.socket());
        }
        let mut child = command.stdout(Stdio::null()).stderr(file).spawn()?;
        drop(copies);
        let ready = wait_until("the server to say ready", READY_MAX, || {
            let text = fs::read_to_string(&log)?;
            let ended = child.try_wait()?.map(|status| status.to_string());
            let ready =
                text.get(seen..).unwrap_or_default().lines().any(|l| l.starts_with("ready "));
            Ok(if ready { Some(Ok(())) } else { ended.map(Err) })
        })?;
        if let Err(status) = ready {
            bail!("perch server ended with {status}:\n{}", self.server_log_tail());
        }
        self.server = Some(child);
        Ok(())
    }

    /// Starts the server and kills it so long after its process is there, whatever it is doing by then.
    pub fn start_and_kill_server(&mut self, after: Duration) -> Result<()> {
        let file = File::options().create(true).append(true).open(self.server_log())?;
        let child = self.server_command()?.stdout(Stdio::null()).stderr(file).spawn()?;
        self.server = Some(child);
        let server =
            wait_until("the server's process", READY_MAX, || Ok(Some(self.server_process()?)))?;
        holds_for("a server that starts", after, || Ok(true))?;
        server.kill()?;
        self.reap_server()
    }

    fn server_command(&self) -> Result<Command> {
        let data = self.data_dir().to_string_lossy().into_owned();
        let config = self.dir.path().join("perch.toml").to_string_lossy().into_owned();
        fs::write(&config, &self.config)?;
        let args = ["server", "--data-dir", &data, "--config", &config];
        let mut command = self.command(&self.binary_text(), &args);
        command.envs(self.server_env.iter().cloned());
        Ok(command)
    }

    /// What the server and its proxy have logged.
    pub fn server_log(&self) -> PathBuf {
        self.dir.path().join("server.log")
    }

    /// The end of the server's log, for error texts.
    pub fn server_log_tail(&self) -> String {
        let text = fs::read_to_string(self.server_log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }

    /// Ends the server by SIGTERM and waits for it; Machines go on.
    pub fn stop_server(&mut self) -> Result<()> {
        process::signal(self.server_process()?.pid, Signal::TERM)?;
        self.reap_server()
    }

    /// Kills the server without warning.
    pub fn kill_server(&mut self) -> Result<()> {
        self.server_process()?.kill()?;
        self.reap_server()
    }

    /// Kills the proxy without warning; returns its process as it was.
    pub fn kill_proxy(&self) -> Result<Process> {
        let proxy = self.perch_processes("proxy").pop().context("no proxy runs")?;
        proxy.kill()?;
        Ok(proxy)
    }

    /// Waits for the end of a server that somebody else has killed.
    pub fn await_server_end(&mut self) -> Result<()> {
        self.reap_server()
    }

    /// Ends the server alone, as a service manager does that restarts it.
    pub fn leave_server(&mut self) -> Result<()> {
        process::signal(self.server_process()?.pid, Signal::USR1)?;
        self.reap_server()
    }

    /// The program under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// From now on this is the program under test.
    pub fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Lets this program replace the running server; it is the one under test then. What was said.
    pub fn upgrade(&mut self, binary: &Path) -> Result<String> {
        let said = self.upgrade_by(binary, "perch server --upgrade")?;
        self.reap_server()?;
        self.set_binary(binary);
        Ok(said)
    }

    fn upgrade_by(&self, binary: &Path, text: &str) -> Result<String> {
        let data = self.data_dir().to_string_lossy().into_owned();
        let args = ["server", "--upgrade", "--data-dir", &data];
        finish(&mut self.command(&binary.to_string_lossy(), &args), text)?.ok()
    }

    /// After an upgrade in whose midst somebody was killed: the server that runs is the one under test, or the next one
    /// is started.
    pub fn find_server(&mut self) -> Result<()> {
        let is_server =
            |it: &Process| it.state != 'Z' && it.args.get(1).is_some_and(|role| role == "server");
        let running = wait_until("a server that answers, or none", READY_MAX, || {
            let Some(server) = self.processes().into_iter().find(is_server) else {
                return Ok(Some(None));
            };
            let answers = self.fly(&["apps", "list"])?.status.success();
            Ok(answers.then_some(server.exe))
        })?;
        match running {
            Some(program) => {
                self.set_binary(&program);
                Ok(())
            }
            None => self.start_server(),
        }
    }

    /// Asks the running server, in the name of the command, to be replaced by any program. What was said; an error
    /// with it if that did not come about.
    pub fn upgrade_to(&self, program: &Path) -> Result<String> {
        let socket = self.data_dir().join("upg.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket)?;
        process::signal(self.server_process()?.pid, Signal::USR2)?;
        let (mut stream, _) = listener.accept()?;
        fs::remove_file(&socket)?;
        stream.set_read_timeout(Some(COMMAND_MAX))?;
        std::io::Write::write_all(&mut stream, format!("{}\n", program.display()).as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        let is_done = said.lines().any(|line| line.starts_with("done "));
        if is_done { Ok(said) } else { bail!("{said}") }
    }

    fn reap_server(&mut self) -> Result<()> {
        let limit = READY_MAX;
        let Some(mut server) = self.server.take() else {
            return wait_until("the server to end", limit, || {
                Ok(self.perch_processes("server").is_empty().then_some(()))
            });
        };
        wait_until("the server to end", limit, || Ok(server.try_wait()?)).map(drop)
    }

    /// The process of the server.
    pub fn server_process(&self) -> Result<Process> {
        let all = self.perch_processes("server");
        // What it is just starting looks like the server itself until it runs its own program.
        let first = |it: &&Process| all.iter().all(|other| other.pid != it.parent);
        all.iter().find(first).cloned().context("no server runs")
    }

    /// Processes of the binary under test with this first argument: `server`, `proxy`, `shim`.
    pub fn perch_processes(&self, command: &str) -> Vec<Process> {
        let ours = |p: &Process| p.exe.as_deref() == Some(&self.binary);
        let mut found = self.processes();
        found.retain(|p| ours(p) && p.args.get(1).is_some_and(|arg| arg == command));
        found
    }

    /// All processes in this host, but not the one that holds it.
    pub fn processes(&self) -> Vec<Process> {
        let mut found = process::in_namespace_of(self.init);
        // Its `sleep` is how it waits.
        found.retain(|p| !(p.parent == self.init && p.args.first().is_some_and(|a| a == "sleep")));
        found
    }

    /// A way into the host's network for threads that the test makes itself.
    pub fn entrance(&self) -> Result<Entrance> {
        Ok(Entrance(File::open(format!("/proc/{}/ns/net", self.init))?))
    }

    /// Runs `work` on a thread that is inside the host's network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.entrance()?.inside(work)
    }

    /// Asks an address from the host.
    pub fn get(&self, ip: &str, port: u16, path: &str) -> Result<Response> {
        let ip: IpAddr = ip.parse().with_context(|| format!("`{ip}` is no address"))?;
        let address = SocketAddr::new(ip, port);
        self.inside(|| crate::get(address, path, Duration::from_secs(65)))
    }

    /// Asks from a Machine of the app at `caller` (an example app) for a URL.
    pub fn fetch(&self, caller: &str, url: &str) -> Result<Response> {
        self.get(caller, 80, &format!("/fetch?url={url}"))
    }

    /// Asks the API itself, without a process for the question.
    pub fn api(&self, path: &str) -> Result<serde_json::Value> {
        let mut stream = UnixStream::connect(self.socket()).context("connecting to the API")?;
        stream.set_read_timeout(Some(COMMAND_MAX))?;
        let answer = crate::http::exchange(&mut stream, path).with_context(|| path.to_owned())?;
        if answer.status != 200 {
            bail!("{path} answers {answer:?}");
        }
        serde_json::from_str(&answer.body).with_context(|| format!("JSON of {path}"))
    }

    /// Sends any request to the API, without a process for it.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: &[u8],
    ) -> Result<Response> {
        self.request_with(method, path, &[("Content-Type", content_type)], body)
    }

    /// The same with any headers.
    pub fn request_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        let mut stream = UnixStream::connect(self.socket()).context("connecting to the API")?;
        stream.set_read_timeout(Some(COMMAND_MAX))?;
        crate::http::send(&mut stream, method, path, headers, body)
            .with_context(|| format!("{method} {path}"))
    }

    /// The Machines of an app.
    pub fn machines(&self, app: &str) -> Result<Vec<Machine>> {
        let list = self.fly(&["machine", "list", "--json", "-a", app])?.json()?;
        Ok(list.as_array().into_iter().flatten().map(Machine::new).collect())
    }

    /// The states of an app's Machines, sorted.
    pub fn states(&self, app: &str) -> Result<Vec<String>> {
        let mut states: Vec<String> = self.machines(app)?.into_iter().map(|m| m.state).collect();
        states.sort();
        Ok(states)
    }

    /// Waits until every Machine of an app has this state.
    pub fn wait_all(&self, app: &str, state: &str, limit: Duration) -> Result<()> {
        wait_until(&format!("all Machines of {app} to be {state}"), limit, || {
            let states = self.states(app)?;
            let reached = !states.is_empty() && states.iter().all(|s| s == state);
            if reached { Ok(Some(())) } else { bail!("they are {states:?}") }
        })
    }

    /// The addresses of an app.
    pub fn ips(&self, app: &str) -> Result<Vec<Ip>> {
        let list = self.fly(&["ips", "list", "--json", "-a", app])?.json()?;
        Ok(list.as_array().into_iter().flatten().map(Ip::new).collect())
    }

    /// The Flycast address of an app.
    pub fn flycast(&self, app: &str) -> Result<String> {
        let ips = self.ips(app)?;
        let private = ips.into_iter().find(|ip| ip.kind == "private_v6");
        Ok(private.with_context(|| format!("{app} has no Flycast address"))?.address)
    }

    /// Makes a directory for an app with this `fly.toml`.
    pub fn app_dir(&self, name: &str, fly_toml: &str) -> Result<PathBuf> {
        let dir = self.dir.path().join(name);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("fly.toml"), fly_toml)?;
        Ok(dir)
    }

    /// What `perch down --purge` must leave as it was: links, routes, rules, firewall, mounts, and no cgroup of the
    /// server with this data directory.
    pub fn surroundings(&self, data_dir: &Path) -> Result<String> {
        let asked: [&[&str]; 6] = [
            &["ip", "-o", "link"],
            &["ip", "-4", "route", "show", "table", "all"],
            &["ip", "-6", "route", "show", "table", "all"],
            &["ip", "rule"],
            &["nft", "list", "ruleset"],
            &["cut", "-d ", "-f2", "/proc/self/mounts"],
        ];
        let mut text = String::new();
        for line in asked {
            text += &self.run(line[0], &line[1..])?.ok()?;
        }
        text += &leftovers::cgroups(data_dir);
        Ok(text)
    }
}

/// The network namespace of a host.
pub struct Entrance(File);

impl Entrance {
    /// A way into the network of a process, such as a Machine's.
    pub fn of(process: &Process) -> Result<Self> {
        Self::of_number(process.pid)
    }

    /// The same by a process's number.
    pub fn of_number(pid: i32) -> Result<Self> {
        Ok(Self(File::open(format!("/proc/{pid}/ns/net"))?))
    }

    /// Runs `work` on a thread that is inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread, and those that it will make, into the host's network for good.
    pub fn enter(&self) -> Result<()> {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(self.0.as_fd(), kind).context("entering the host's network")
    }
}

/// Starts the processes that are the host; returns the outer one and process 1 inside.
fn hold() -> Result<(Child, i32)> {
    let mut holder = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork"])
        .args(["--kill-child", "--mount-proc", "--propagation", "private"])
        .args(["bash", "-c", "while :; do sleep 3600 & wait $!; done"])
        .stdin(Stdio::null())
        .spawn()
        .context("starting unshare")?;
    let pid = holder.id();
    let children = format!("/proc/{pid}/task/{pid}/children");
    let init = wait_until("process 1 of the host", Duration::from_secs(10), || {
        let text = fs::read_to_string(&children)?;
        let Some(init) = text.split_whitespace().next() else { return Ok(None) };
        // Only the program inside knows that mounts are in place.
        let name = fs::read_to_string(format!("/proc/{init}/comm"))?;
        Ok((name.trim() == "bash").then(|| init.parse()).transpose()?)
    });
    match init {
        Ok(init) => Ok((holder, init)),
        Err(error) => {
            drop(holder.kill());
            drop(holder.wait());
            Err(error)
        }
    }
}

/// Runs a command to its end, or kills it at the limit.
fn finish(command: &mut Command, text: &str) -> Result<Output> {
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting `{text}`"))?;
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let status = wait_until(&format!("`{text}` to end"), COMMAND_MAX, || Ok(child.try_wait()?));
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            drop(child.kill());
            return Err(error);
        }
    };
    let output = std::process::Output {
        status,
        stdout: stdout.join().unwrap_or_default(),
        stderr: stderr.join().unwrap_or_default(),
    };
    if std::env::var_os("PERCH_TEST_VERBOSE").is_some() {
        eprintln!("{:?} {}", started.elapsed(), Output::new(text.to_owned(), &output));
    }
    Ok(Output::new(text.to_owned(), &output))
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read until an error is still worth showing.
            drop(pipe.read_to_end(&mut bytes));
        }
        bytes
    })
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.data_dir().exists() {
            let data = self.data_dir().to_string_lossy().into_owned();
            if let Err(error) = self.perch(&["down", "--data-dir", &data, "--purge"]) {
                eprintln!("perch down: {error:#}");
            }
        }
        let swap = self.data_dir().join("swap");
        if swap.exists() {
            // The kernel's, not the namespace's: it would stay on without a name.
            drop(Command::new("swapoff").arg(&swap).stderr(Stdio::null()).status());
        }
        drop(self.holder.kill());
        drop(self.holder.wait());
        if let Some(mut server) = self.server.take() {
            drop(server.kill());
            drop(server.wait());
        }
        leftovers::remove_cgroups(&self.data_dir());
    }
}
