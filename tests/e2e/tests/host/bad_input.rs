//! What users get wrong: each has a message that says what to do, and leaves nothing half-done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use perch_testkit::{Entry, Host, Image, Network, Output, wait_until};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SNIPPET, SOON, check_answer, fly_toml, hello_image, on, on_host,
    private_app, wait_asleep,
};

#[test]
fn broken_toml_is_named_with_file_line_and_column() {
    on_host(|host| {
        check_refused(host, "app = 'web'\n[http_service\n", &["fly.toml:2:"])?;
        check_refused(
            host,
            "app = 'web'\n[http_service]\ninternal_port = 'x'\n",
            &["fly.toml:3:", "internal_port"],
        )
    });
}

#[test]
fn a_port_out_of_range_is_refused() {
    on_host(|host| {
        let image = hello_image(host)?;
        let sections = SNIPPET.replace("8081", "80810");
        check_refused(host, &fly_toml("web", &image, &sections), &["internal_port", "65535"])
    });
}

#[test]
fn an_image_that_is_not_there_is_refused_with_the_ways_to_give_one() {
    on_host(|host| {
        let text = fly_toml("web", "oci:/nonexistent", AWAKE);
        check_refused(host, &text, &["/nonexistent"])?;
        check_refused(host, "app = 'web'\n", &["docker", "oci:"])
    });
}

#[test]
fn a_name_that_is_taken_is_refused() {
    on_host(|host| {
        host.fly(&["apps", "create", "web"])?.ok()?;
        let again = host.fly(&["apps", "create", "web"])?;
        again.says(&["taken"])?;
        again.fails()?;
        check_apps(host, &["web"])
    });
}

#[test]
fn no_address_is_released_if_one_of_them_is_not_yours() {
    on_host(|host| {
        let mine = private_app(host, "web", AWAKE)?;
        let theirs = private_app(host, "other", AWAKE)?;
        let output = host.fly(&["ips", "release", &mine, &theirs, "-a", "web"])?;
        output.says(&[&theirs])?;
        output.fails()?;
        ensure!(host.flycast("web")? == mine, "{mine} was released");
        let output = host.fly(&["ips", "release", "nonsense", "-a", "web"])?;
        output.says(&["Invalid IP address: 'nonsense'"])?;
        output.fails()?;
        check_answer(&host.get(&mine, 80, "/")?, "")?;
        check_answer(&host.get(&theirs, 80, "/")?, "")
    });
}

#[test]
fn a_push_that_does_not_fit_is_refused_and_takes_nothing() {
    on(small_disk, |host| {
        let sleeper = private_app(host, "sleeper", SNIPPET)?;
        private_app(host, "second", AWAKE)?;
        wait_asleep(host, "sleeper")?;
        let before = free_kb(host)?;
        let big = Entry::File(vec![1; 128 << 20], 0o644);
        let image = Image::shell("exit 0")?.entry("big", &big);
        let image = image.write(&host.dir().join("big"))?;
        let dir = host.app_dir("refused", &fly_toml("web", &image, AWAKE))?;
        let args = ["launch", "--flycast", "--copy-config", "--name", "web", "-y"];
        let output = host.fly_in(&dir, &args)?;
        output.says(&["space"])?;
        output.fails()?;
        let after = free_kb(host)?;
        ensure!(before < after + 1024, "{before} kB were free, now {after}");
        check_apps(host, &["second", "sleeper"])?;
        push_and_leave(host)?;
        let after = free_kb(host)?;
        ensure!(before < after + 1024, "{before} kB were free, now {after}");
        check_answer(&host.get(&sleeper, 80, "/")?, "")?;
        host.fly(&["apps", "destroy", "second", "--yes"])?.ok()?;
        host.fly(&["apps", "create", "small"])?.ok()?;
        check_apps(host, &["sleeper", "small"])
    });
}

#[test]
fn on_a_full_disk_everything_that_makes_room_still_works() {
    on(small_disk, |host| {
        let sleeper = private_app(host, "sleeper", SNIPPET)?;
        private_app(host, "second", AWAKE)?;
        wait_asleep(host, "sleeper")?;
        fill(host)?;
        check_refused_wake(host, &sleeper)?;
        fill(host)?;
        let machine = host.machines("sleeper")?.pop().context("no Machine")?.id;
        let socket = host.socket().to_string_lossy().into_owned();
        let url = format!("http://perch/v1/apps/sleeper/machines/{machine}?force=true");
        let destroy = ["-sS", "--fail-with-body", "-X", "DELETE", "--unix-socket", &socket, &url];
        host.run("curl", &destroy)?.ok()?;
        fill(host)?;
        host.fly(&["apps", "destroy", "second", "--yes"])?.ok()?;
        ensure!(host.perch_processes("shim").is_empty(), "a destroyed app runs");
        // A server that was killed comes back to a disk that is still full.
        fill(host)?;
        host.kill_server()?;
        host.start_server()?;
        host.fly(&["apps", "destroy", "sleeper", "--yes"])?.ok()?;
        fill(host)?;
        let data = host.data_dir().to_string_lossy().into_owned();
        host.perch(&["down", "--data-dir", &data])?.ok().map(drop)
    });
}

/// A host whose data directory is on a small disk of its own.
fn small_disk() -> Result<Host> {
    let mut host = Host::bare(Network::Open)?;
    fs::create_dir(host.data_dir())?;
    let data = host.data_dir().to_string_lossy().into_owned();
    host.run("mount", &["-t", "tmpfs", "-o", "size=96m", "tmpfs", &data])?.ok()?;
    // What is made ready ahead gives its room back when it is not needed, and what was full is not any more.
    host.configure(&format!("{QUICK_SLEEP}armed_max = 0\nblank_max = 0\n"));
    host.start_server()?;
    Ok(host)
}

/// What is free of the host's small disk.
fn free_kb(host: &Host) -> Result<u64> {
    let data = host.data_dir().to_string_lossy().into_owned();
    let text = host.run("df", &["--output=avail", "-k", &data])?.ok()?;
    text.lines().last().and_then(|line| line.trim().parse().ok()).context("df says no number")
}

/// Pushes too much, as a client that never cancels an upload.
fn push_and_leave(host: &Host) -> Result<()> {
    let script = "\
        dd if=/dev/zero of=\"$1\" bs=1M count=128 2>/dev/null\n\
        curl -sS --unix-socket \"$0\" -D - -X POST http://perch/v2/second/blobs/uploads/ |\n\
        tr -d '\\r' | sed -n 's/^[Ll]ocation: //p' | sed 's|^http://[^/]*||' | {\n\
        read -r path && curl -sS --unix-socket \"$0\" -T \"$1\" -X PATCH \"http://perch$path\"; }";
    let socket = host.socket().to_string_lossy().into_owned();
    let file = host.dir().join("zeros").to_string_lossy().into_owned();
    let output = host.run("sh", &["-c", script, &socket, &file])?;
    output.says(&["space"])
}

/// Leaves nothing free, as a Machine can that writes without end.
fn fill(host: &Host) -> Result<()> {
    let filler = host.data_dir().join("filler").to_string_lossy().into_owned();
    wait_until("a full disk", SOON, || {
        // It ends with an error: that is the aim. What just ended may still be making room.
        host.run("sh", &["-c", "exec cat /dev/zero 2>/dev/null >>\"$0\"", &filler])?;
        Ok((free_kb(host)? == 0).then_some(()))
    })
}

/// A wake on a full disk says so, to the caller and in the Machine's events, and names no file of the host.
fn check_refused_wake(host: &Host, address: &str) -> Result<()> {
    let answer = host.get(address, 80, "/")?;
    ensure!(answer.status == 503, "not refused: {answer:?}");
    let data = host.data_dir().to_string_lossy().into_owned();
    let events: Vec<_> =
        host.machines("sleeper")?.iter().map(|it| it.value["events"].to_string()).collect();
    for text in [answer.body, events.concat()] {
        ensure!(text.contains("no space is left"), "it does not say why: {text}");
        ensure!(!text.contains(&data), "it names a path of the host: {text}");
    }
    Ok(())
}

#[test]
fn another_user_is_told_that_the_socket_is_not_theirs() {
    on_host(|host| {
        let output = as_nobody(host, &["fly", "apps", "list"])?;
        output.says(&["may not use the Perch server"])?;
        output.fails().map(drop)
    });
}

#[test]
fn without_a_server_the_message_says_how_to_start_one() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let output = host.fly(&["apps", "list"])?;
            output.says(&["no Perch server is running", "perch server"])?;
            output.fails().map(drop)
        },
    );
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    on_host(|host| {
        let address = private_app(host, "web", AWAKE)?;
        let data = host.data_dir().to_string_lossy().into_owned();
        let second = host.perch(&["server", "--data-dir", &data])?;
        second.says(&[&data, "another"])?;
        second.fails()?;
        check_answer(&host.get(&address, 80, "/")?, "")
    });
}

#[test]
fn a_socket_path_that_is_too_long_is_named() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let long = host.dir().join("x".repeat(120));
            let long = long.to_string_lossy().into_owned();
            let server = host.perch(&["server", "--data-dir", &long])?;
            server.says(&["107"])?;
            server.fails()?;
            let mut fly = host.fly_command(host.dir(), &["apps", "list"]);
            let output = fly.env("PERCH_SOCKET", format!("{long}/api.sock")).output()?;
            Output::new("fly apps list".to_owned(), &output).says(&["at most 107"])
        },
    );
}

#[test]
fn an_unknown_key_of_the_server_is_named_with_line_and_column() {
    on(
        || Host::bare(Network::Open),
        |host| {
            let config = host.dir().join("bad.toml");
            fs::write(&config, format!("{QUICK_SLEEP}regionn = \"lcl\"\n"))?;
            let (data, config) = (host.data_dir(), config.to_string_lossy().into_owned());
            let data = data.to_string_lossy().into_owned();
            let args = ["server", "--data-dir", &data, "--config", &config];
            let output = host.perch(&args)?;
            output.says(&["bad.toml:2:1", "regionn"])?;
            output.fails().map(drop)
        },
    );
}

/// Launches this `fly.toml`; it must fail, say all of `parts`, and leave no app with Machines.
fn check_refused(host: &Host, fly_toml: &str, parts: &[&str]) -> Result<()> {
    let dir = host.app_dir("refused", fly_toml)?;
    let args = ["launch", "--flycast", "--copy-config", "--name", "web", "-y"];
    let output = host.fly_in(&dir, &args)?;
    output.says(parts)?;
    output.fails()?;
    check_apps(host, &[])
}

/// These apps are there and no others.
pub(crate) fn check_apps(host: &Host, names: &[&str]) -> Result<()> {
    let list = host.fly(&["apps", "list", "--quiet"])?.ok()?;
    let found: Vec<&str> = list.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    ensure!(found == names, "apps are {found:?}, not {names:?}");
    Ok(())
}

/// Runs `perch …` as a user without privileges.
pub(crate) fn as_nobody(host: &Host, args: &[&str]) -> Result<Output> {
    // A copy where everybody may read, because the build directory may be private.
    let binary = host.dir().join("perch");
    fs::copy(std::env::var("PERCH_BIN")?, &binary)?;
    readable(host.dir())?;
    readable(&binary)?;
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let binary = binary.to_string_lossy().into_owned();
    host.run("setpriv", &[&user[..], &[&binary], args].concat())
}

fn readable(path: &Path) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
