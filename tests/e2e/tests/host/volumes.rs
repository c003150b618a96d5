//! Volumes: what is written there is there for the next run, whoever died (issue 4, fly-semantics 5.9).

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entry, Host, Image, Process, wait_until};

use crate::stage::{AWAKE, SOON, fly_toml, machine_processes, on_host, one_machine_of};

/// Runs what the query of a request says, as a shell would.
const SHELL: &str = "#!/bin/busybox sh\n\
    printf 'Content-Type: text/plain\\r\\n\\r\\n'\n\
    PATH=/bin; export PATH\n\
    busybox sh -c \"$(busybox httpd -d \"$QUERY_STRING\")\" 2>&1; echo \"exit $?\"\n";

const MOUNT: &str = "\
[mounts]
  source = 'data'
  destination = '/data'
";

/// Writes a text so that it survives a loss of power.
const WRITE: &str = "echo kept | dd of=/data/file conv=fsync 2>/dev/null && echo written";

#[test]
fn what_was_written_is_there_after_a_restart_and_a_deploy() {
    on_host(|host| {
        let address = app(host, "db", MOUNT)?;
        let listed = host.fly(&["volumes", "list", "-a", "db"])?.ok()?;
        let id = machine(host, "db")?;
        ensure!(listed.contains("data") && listed.contains(&id), "not attached to {id}: {listed}");
        check(host, &address, WRITE, "written")?;
        check(host, &address, "echo x > /mine", "exit 0")?;
        check(host, &address, "stat -c %u:%g:%a /data", "0:0:755")?;
        restart(host, &id)?;
        check(host, &address, "cat /data/file; ls /mine", "kept")?;
        check(host, &address, "ls /mine", "No such file")?;
        deploy(host, "db", &format!("{MOUNT}\n[env]\n  NEW = 'yes'\n"))?.ok()?;
        check(host, &address, "cat /data/file; echo $NEW", "kept\nyes")?;
        ensure!(machine(host, "db")? == id, "the deploy made another Machine");
        Ok(())
    });
}

#[test]
fn what_was_synced_is_there_after_everything_was_killed_in_any_order() {
    on_host(|host| {
        let address = app(host, "db", MOUNT)?;
        let id = machine(host, "db")?;
        check(host, &address, "rm -f /data/log; echo begin > /data/log", "exit 0")?;
        for order in ["server proxy shim init", "init server shim proxy", "shim init proxy server"]
        {
            let write = format!(
                "echo '{order}' | dd of=/data/log conv=fsync,notrunc oflag=append 2>/dev/null"
            );
            check(host, &address, &write, "exit 0")?;
            let (shims, inside) = (host.perch_processes("shim"), machine_processes(host, &id));
            for whom in order.split(' ') {
                match whom {
                    "server" => host.kill_server()?,
                    "proxy" => drop(host.kill_proxy()),
                    // They may have died with another one.
                    "shim" => shims.iter().for_each(|it| drop(it.kill())),
                    _ => inside.iter().for_each(|it| drop(it.kill())),
                }
            }
            host.start_server()?;
            let said = told(host, &address, "cat /data/log")?;
            ensure!(said.contains(order), "{order} is lost: {said:?}");
        }
        host.fly(&["machine", "stop", &id, "-a", "db", "-w", "30s"])?.ok()?;
        no_loops(host)
    });
}

#[test]
fn a_volume_has_one_machine_and_outlives_machine_and_app() {
    on_host(|host| {
        let address = app(host, "db", MOUNT)?;
        check(host, &address, WRITE, "written")?;
        let (machine, volume) = (machine(host, "db")?, volume(host, "db", "data")?);
        let body = format!(
            r#"{{"config":{{"image":"{}","mounts":[{{"volume":"{volume}","path":"/data"}}]}}}}"#,
            config_image(host)?
        );
        let json = "application/json";
        let refused = host.request("POST", "/v1/apps/db/machines", json, body.as_bytes())?;
        ensure!(refused.status == 412 && refused.body.contains(&machine), "{refused:?}");
        let busy = host.fly(&["volumes", "destroy", &volume, "-a", "db", "-y"])?.fails()?;
        ensure!(busy.contains("currently bound to machine"), "{busy}");
        let asks = host.fly(&["volumes", "destroy", &volume, "-a", "db"])?.fails()?;
        ensure!(asks.contains("yes flag must be specified"), "{asks}");

        host.fly(&["machine", "stop", &machine, "-a", "db", "-w", "30s"])?.ok()?;
        host.request("DELETE", &format!("/v1/apps/db/machines/{machine}"), json, b"")?;
        wait_until("the volume to be free", SOON, || {
            let shown = host.fly(&["volumes", "list", "-a", "db", "--json"])?.json()?;
            Ok(shown[0]["attached_machine_id"].is_null().then_some(()))
        })?;
        deploy(host, "db", MOUNT)?.ok()?;
        check(host, &address, "cat /data/file", "kept").context("another Machine")?;

        let said = host.fly(&["apps", "destroy", "db", "-y"])?;
        said.says(&[&format!("Kept volume {volume}")])?;
        let address = app(host, "db", MOUNT)?;
        check(host, &address, "cat /data/file", "kept").context("another app of the name")?;
        host.fly(&["apps", "destroy", "db", "-y"])?.ok()?;
        let gone = host.fly(&["volumes", "destroy", &volume, "-a", "db", "-y"])?.ok()?;
        ensure!(gone.contains(&format!("Destroyed volume ID: {volume} name: data")), "{gone}");
        ensure!(!host.data_dir().join("volumes").join(&volume).exists(), "its files are left");
        no_loops(host)
    });
}

#[test]
fn a_full_volume_is_its_own_machines_problem_and_grows() {
    on_host(|host| {
        let full = app(host, "db", MOUNT)?;
        let other = app(host, "other", MOUNT)?;
        check(host, &full, "fallocate -l 900M /data/big", "exit 0")?;
        let write = "dd if=/dev/zero of=/data/more bs=1M count=200";
        check(host, &full, write, "No space left on device")?;
        check(host, &other, WRITE, "written")?;
        let (machine, volume) = (machine(host, "db")?, volume(host, "db", "data")?);
        let less = host.fly(&["volumes", "extend", &volume, "-a", "db", "-s", "0.5"])?.fails()?;
        ensure!(less.contains("size must be specified"), "{less}");
        let said = host.fly(&["volumes", "extend", &volume, "-a", "db", "-s", "+1"])?.ok()?;
        ensure!(said.contains("Size GB: 2"), "{said}");
        if said.contains("You will need to stop and start your Machine") {
            host.fly(&["machine", "stop", &machine, "-a", "db", "-w", "30s"])?.ok()?;
            host.fly(&["machine", "start", &machine, "-a", "db"])?.ok()?;
        } else {
            ensure!(said.contains("without needing a restart"), "{said}");
        }
        check(host, &full, &format!("rm /data/more; {write} && echo fits"), "fits")?;
        let less = host.fly(&["volumes", "extend", &volume, "-a", "db", "-s", "1"])?.fails()?;
        ensure!(less.contains("a volume can only grow"), "{less}");
        Ok(())
    });
}

#[test]
fn snapshots_and_forks_have_what_was_there_at_their_moment() {
    on_host(|host| {
        let address = app(host, "db", MOUNT)?;
        check(host, &address, WRITE, "written")?;
        let volume = volume(host, "db", "data")?;
        host.fly(&["volumes", "snapshots", "list", &volume, "-a", "db"])?.ok()?;
        let said = host.fly(&["vol", "snapshots", "create", &volume, "-a", "db"])?.ok()?;
        ensure!(said == format!("Scheduled to snapshot volume {volume}\n"), "{said:?}");
        check(host, &address, "echo later | dd of=/data/later conv=fsync 2>/dev/null", "exit 0")?;
        let listed = host.fly(&["vol", "snapshots", "ls", &volume, "-a", "db"])?.ok()?;
        ensure!(listed.contains("1.0 GiB") && listed.contains("Total stored size"), "{listed}");
        let json = host.fly(&["vol", "snapshots", "ls", &volume, "-a", "db", "-j"])?.json()?;
        let snapshot = json[0]["id"].as_str().context("no snapshot")?.to_owned();

        let args =
            ["vol", "create", "old", "-a", "db", "--snapshot-id", &snapshot, "-s", "2", "-y"];
        host.fly(&args)?.ok()?;
        host.fly(&["vol", "fork", &volume, "-a", "db", "-n", "forked"])?.ok()?;
        let (old, forked) = (self::volume(host, "db", "old")?, self::volume(host, "db", "forked")?);
        ensure!(on_disk(host, &old, "/file")? == "kept\n", "not in the snapshot");
        ensure!(on_disk(host, &old, "/later")?.is_empty(), "the snapshot has what came later");
        ensure!(on_disk(host, &forked, "/later")? == "later\n", "not in the fork");
        let sound = |id: &String| {
            let image = image_of(host, id);
            host.run("e2fsck", &["-f", "-n", &image])?.ok()
        };
        sound(&old)?;
        sound(&forked)?;
        check(host, &address, "echo more > /data/more && echo goes on", "goes on")
    });
}

#[test]
fn who_holds_a_volume_still_for_its_copy_may_be_killed() {
    on_host(|host| {
        let address = app(host, "db", MOUNT)?;
        let much = "dd if=/dev/zero of=/data/much bs=1M count=400 conv=fsync 2>/dev/null";
        check(host, &address, much, "exit 0")?;
        let volume = volume(host, "db", "data")?;
        let tried = wait_until("a copy to kill", SOON, || {
            let tried = copy_and_kill(host, &volume)?;
            Ok((!matches!(tried, Tried::TooLate)).then_some(tried))
        })?;
        if let Tried::Killed(copied) = tried {
            // What was written meanwhile may be in it, or half in it.
            copied.fails()?;
        }
        check(host, &address, "echo more > /data/more && sync && echo goes on", "goes on")
    });
}

enum Tried {
    /// What the copy says whose holder was killed.
    Killed(perch_testkit::Output),
    /// The holder ended between the look and the signal.
    TooLate,
    /// A disk that clones files needs nobody to hold them still.
    NotHeld,
}

/// Makes a snapshot and kills who holds the volume still for it.
fn copy_and_kill(host: &Host, volume: &str) -> Result<Tried> {
    std::thread::scope(|scope| {
        let copy = scope.spawn(|| host.fly(&["vol", "snapshots", "create", volume, "-a", "db"]));
        let holder = wait_until("who holds it still", SOON, || {
            let found = host
                .processes()
                .into_iter()
                .find(|it| it.state == 'S' && it.args.get(1).is_some_and(|word| word == "freeze"));
            Ok(found.map(Some).or_else(|| copy.is_finished().then_some(None)))
        })?;
        let killed = holder.as_ref().map(Process::kill);
        let copied = copy.join().map_err(|_| anyhow::anyhow!("the copy panicked"))??;
        Ok(match killed {
            Some(Ok(())) => Tried::Killed(copied),
            Some(Err(_)) => Tried::TooLate,
            None => Tried::NotHeld,
        })
    })
}

#[test]
fn without_tools_for_file_systems_a_volume_is_a_directory_and_says_so() {
    on_host(|host| {
        host.run("mount", &["--bind", "/dev/null", "/usr/sbin/mkfs.ext4"])?.ok()?;
        host.perch(&["doctor"])?.says(&["mkfs.ext4 is missing (package e2fsprogs)"])?;
        let address = app(host, "db", MOUNT)?;
        check(host, &address, WRITE, "written")?;
        let id = volume(host, "db", "data")?;
        let shown = host.fly(&["volumes", "show", &id, "-a", "db"])?;
        shown.says(&[&format!("NOTE: the size of volume {id} is not enforced")])?;
        let busy = host.fly(&["vol", "snapshots", "create", &id, "-a", "db"])?.fails()?;
        ensure!(busy.contains("stop the machine first"), "{busy}");
        let machine = machine(host, "db")?;
        host.fly(&["machine", "stop", &machine, "-a", "db", "-w", "30s"])?.ok()?;
        host.fly(&["vol", "snapshots", "create", &id, "-a", "db"])?.ok()?;
        host.fly(&["machine", "start", &machine, "-a", "db"])?.ok()?;
        check(host, &address, "cat /data/file", "kept")
    });
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    on_host(|host| {
        host.fly(&["apps", "create", "db"])?.ok()?;
        for (args, words) in [
            (&["Bad-Name", "-y"][..], "lower-case letters"),
            (&["data", "-s", "0", "-y"], "1 to 4096 GB"),
            (&["data", "-s", "9999", "-y"], "1 to 4096 GB"),
            (&["data", "--snapshot-retention", "99", "-y"], "1 to 60 days"),
            (&["data", "--snapshot-id", "vs_none", "-y"], "no snapshot vs_none"),
            (&["data", "-r", "mars", "-y"], "mars"),
            (&["data", "--fs-type", "raw", "-y"], "no raw volumes"),
            (&["data"], "yes flag must be specified"),
        ] {
            let said = host.fly(&[&["volumes", "create", "-a", "db"], args].concat())?.fails()?;
            ensure!(said.contains(words), "{args:?}: {said}");
        }
        app(host, "web", "")?;
        let missing = deploy(host, "web", MOUNT)?.fails()?;
        ensure!(missing.contains("needs volumes with name 'data'"), "{missing}");
        host.fly(&["volumes", "create", "data", "-a", "web", "-y"])?.ok()?;
        let before = machine(host, "web").ok();
        deploy(host, "web", MOUNT)?.ok()?;
        ensure!(machine(host, "web").ok() != before, "the Machine was not replaced");
        check(host, &host.flycast("web")?, WRITE, "written")
    });
}

/// The image of [`app`].
fn image(host: &Host) -> Result<String> {
    let dir = host.dir().join("shell-server");
    if dir.exists() {
        return Ok(format!("oci:{}", dir.display()));
    }
    let mut image = Image::shell("exec busybox httpd -f -p 8081 -h /www")?;
    for name in ["cat", "dd", "fallocate", "ls", "rm", "stat"] {
        image = image.entry(&format!("bin/{name}"), &Entry::Symlink("busybox".to_owned()));
    }
    image
        .entry("www", &Entry::Dir)
        .entry("www/cgi-bin", &Entry::Dir)
        .entry("www/cgi-bin/do", &Entry::File(SHELL.into(), 0o755))
        .env(&["PATH=/bin"])
        .write(&dir)
}

/// Deploys a private app that runs what it is told, and answers its address.
fn app(host: &Host, name: &str, sections: &str) -> Result<String> {
    one_machine_of(host, name, &image(host)?, &format!("{AWAKE}\n{sections}"))
}

fn deploy(host: &Host, name: &str, sections: &str) -> Result<perch_testkit::Output> {
    let text = fly_toml(name, &image(host)?, &format!("{AWAKE}\n{sections}"));
    let dir = host.app_dir(name, &text)?;
    host.fly_in(&dir, &["deploy"])
}

/// Runs a command in the app's only Machine.
fn told(host: &Host, address: &str, command: &str) -> Result<String> {
    let mut query = String::new();
    for byte in command.bytes() {
        write!(query, "%{byte:02x}")?;
    }
    let answer = host.get(address, 80, &format!("/cgi-bin/do?{query}"))?;
    ensure!(answer.status == 200, "{command}: {answer:?}");
    Ok(answer.body)
}

fn check(host: &Host, address: &str, command: &str, part: &str) -> Result<()> {
    let said = told(host, address, command)?;
    ensure!(said.contains(part), "{command}: no {part:?} in {said:?}");
    Ok(())
}

/// The id of the volume of that name.
pub(crate) fn volume(host: &Host, app: &str, name: &str) -> Result<String> {
    let all = host.fly(&["volumes", "list", "-a", app, "--json"])?.json()?;
    let all = all.as_array().context("no list")?;
    let found = all.iter().find(|volume| volume["name"] == name);
    let id = found.and_then(|volume| volume["id"].as_str());
    Ok(id.with_context(|| format!("no volume {name} among {all:?}"))?.to_owned())
}

fn image_of(host: &Host, volume: &str) -> String {
    host.data_dir().join("volumes").join(volume).join("image").display().to_string()
}

/// A file on a volume that nobody has mounted; empty when there is none.
fn on_disk(host: &Host, volume: &str, file: &str) -> Result<String> {
    let image = image_of(host, volume);
    let read = host.run("debugfs", &["-R", &format!("cat {file}"), &image])?;
    Ok(read.stdout)
}

/// Image of the app's Machine as its config has it.
fn config_image(host: &Host) -> Result<String> {
    let machines = host.api("/v1/apps/db/machines")?;
    Ok(machines[0]["config"]["image"].as_str().context("no image")?.to_owned())
}

/// Fails while a loop device has a file of this server.
pub(crate) fn no_loops(host: &Host) -> Result<()> {
    let data = host.data_dir().display().to_string();
    wait_until("no loop device to be left", SOON, || {
        let devices = fs::read_dir("/sys/block")?.flatten();
        let files =
            devices.filter_map(|it| fs::read_to_string(it.path().join("loop/backing_file")).ok());
        Ok((!files.into_iter().any(|file| file.starts_with(&data))).then_some(()))
    })
}

fn machine(host: &Host, app: &str) -> Result<String> {
    let machines = host.machines(app)?;
    ensure!(machines.len() == 1, "not one Machine: {machines:?}");
    Ok(machines[0].id.clone())
}

fn restart(host: &Host, id: &str) -> Result<()> {
    host.fly(&["machine", "stop", id, "-a", "db", "-w", "30s"])?.ok()?;
    host.fly(&["machine", "start", id, "-a", "db"])?.ok()?;
    Ok(())
}
