//! What users get wrong: each has a message that says what to do, and leaves nothing half-done.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use perch_testkit::{Entry, Host, Image, Network, Output};

use crate::stage::{
    AWAKE, QUICK_SLEEP, SNIPPET, check_answer, fly_toml, hello_image, on, on_host, private_app,
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
fn a_full_disk_is_named_and_the_next_small_thing_works() {
    on(
        || {
            let mut host = Host::bare(Network::Open)?;
            fs::create_dir(host.data_dir())?;
            let data = host.data_dir().to_string_lossy().into_owned();
            host.run("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", &data])?.ok()?;
            host.start_server()?;
            Ok(host)
        },
        |host| {
            let big = Entry::File(vec![1; 32 << 20], 0o644);
            let image = Image::shell("exit 0")?.entry("big", &big);
            let image = image.write(&host.dir().join("big"))?;
            check_refused(host, &fly_toml("web", &image, AWAKE), &["space"])?;
            host.fly(&["apps", "create", "small"])?.ok()?;
            check_apps(host, &["small"])
        },
    );
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
