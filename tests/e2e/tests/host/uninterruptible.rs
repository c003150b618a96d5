//! A program that no signal but SIGKILL reaches: it waits in the kernel for a child of `vfork` that never goes on.

use anyhow::{Result, ensure};
use perch_testkit::{Entry, Host, Image, wait_until};

use crate::limits::{in_state, last_exit, only};
use crate::stage::{AWAKE, SOON, check_answer, fly_toml, machine_processes, on_host, private_app};

/// `if (vfork() == 0) for (;;) pause(); exit_group(0);` for x86-64.
const CODE: &[u8] = &[
    0xb8, 0x3a, 0, 0, 0, 0x0f, 0x05, // vfork
    0x85, 0xc0, 0x75, 0x09, // the parent goes on below
    0xb8, 0x22, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7, // pause, and again
    0xb8, 0xe7, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05, // exit_group
];
const LOADED_AT: u64 = 0x40_0000;
const HEADERS_BYTES: u64 = 64 + 56;

#[test]
fn who_waits_in_the_kernel_is_frozen_thawed_and_ended_like_others() {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: its program is machine code of x86-64");
        return;
    }
    on_host(|host| {
        let neighbour = private_app(host, "quiet", AWAKE)?;
        let answers = || check_answer(&host.get(&neighbour, 80, "/")?, "Hello");
        let id = deploy(host)?;
        wait_until("its wait", SOON, || {
            let waits = machine_processes(host, &id).iter().any(|it| it.state == 'D');
            Ok(waits.then_some(()))
        })?;
        for _ in 0..2 {
            host.fly(&["machine", "suspend", &id, "-a", "stuck"])?.ok()?;
            in_state(host, "stuck", "suspended")?;
            answers()?;
            host.fly(&["machine", "start", &id, "-a", "stuck"])?.ok()?;
            in_state(host, "stuck", "started")?;
        }
        host.fly(&["machine", "stop", &id, "-a", "stuck", "-w", "20s"])?.ok()?;
        let exit = last_exit(&in_state(host, "stuck", "stopped")?)?;
        ensure!(exit["exit_code"] == 137 && exit["requested_stop"] == true, "{exit}");
        ensure!(machine_processes(host, &id).is_empty(), "something of it is left");
        answers()
    });
}

fn deploy(host: &Host) -> Result<String> {
    let image = Image::empty().entry("stuck", &Entry::File(program(), 0o755));
    let image = image.entrypoint(&["/stuck"]).write(&host.dir().join("stuck-image"))?;
    let text = fly_toml("stuck", &image, "kill_timeout = '1s'\n");
    let dir = host.app_dir("stuck", &text)?;
    host.fly(&["apps", "create", "stuck"])?.ok()?;
    host.fly_in(&dir, &["deploy", "--ha=false", "--detach"])?.ok()?;
    in_state(host, "stuck", "started")?;
    Ok(only(host, "stuck")?.id)
}

/// An executable file of one segment, which holds its headers too.
fn program() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let half = |file: &mut Vec<u8>, all: &[u16]| {
        all.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    let long = |file: &mut Vec<u8>, all: &[u64]| {
        all.iter().for_each(|value| file.extend(value.to_le_bytes()));
    };
    // An executable for x86-64, version 1.
    half(&mut file, &[2, 62]);
    word(&mut file, 1);
    // Where it begins, and where its program header and its (no) section headers are.
    long(&mut file, &[LOADED_AT + HEADERS_BYTES, 64, 0]);
    word(&mut file, 0);
    half(&mut file, &[64, 56, 1, 64, 0, 0]);
    // To be loaded, readable and executable.
    word(&mut file, 1);
    word(&mut file, 5);
    let size = HEADERS_BYTES + CODE.len() as u64;
    long(&mut file, &[0, LOADED_AT, LOADED_AT, size, size, 0x1000]);
    file.extend(CODE);
    file
}
