//! A remote shell as ssh is, over the virtual network: client and server.
//!
//! The client stays a process of the caller's node and talks TCP, so a dead node, a hung one and
//! a cut cable are felt as ssh would feel them, and a launcher does not learn of a death through
//! waitpid, which on no real cluster it does.
//!
//! ```text
//! server -> client   banner
//! client -> server   COMMAND text, then INPUT bytes .., END_OF_INPUT
//! server -> client   OUTPUT bytes, ERRORS bytes .., EXIT code
//! each as            kind u8, length u32 big endian, bytes
//! ```
//!
//! As ssh: arguments are joined by blanks and run by `sh -c`, in the home directory, with an
//! environment that is not the caller's; 255 when there is no connection; the end comes when the
//! command has ended *and* its outputs are closed; a command whose client is gone lives on and
//! loses its pipes; an established connection over a cut cable hangs.
//! Does not do: users, terminals, signals, a login without a command.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const PORT: u16 = 22;
const BANNER: &[u8; 16] = b"scrfs-vnode rsh\n";
/// As `ConnectTimeout` of ssh: for the connection, and again for the banner.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What ssh says when the failure is its own.
pub const EXIT_FAILED: u8 = 255;

const COMMAND: u8 = 0;
const INPUT: u8 = 1;
const END_OF_INPUT: u8 = 2;
const OUTPUT: u8 = 3;
const ERRORS: u8 = 4;
const EXIT: u8 = 5;

const FRAME_BYTES_MAX: usize = 1 << 20;
const PUMP_BYTES: usize = 64 << 10;

fn write_frame(to: &mut impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.push(kind);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(bytes);
    to.write_all(&frame)
}

fn read_frame(from: &mut impl Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other(format!("a frame of {length} bytes")));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok((kind, bytes))
}

/// Reads until the end and sends what it reads. An error is the end.
fn pump(mut from: impl Read, kind: u8, to: &Mutex<TcpStream>) {
    let mut buffer = vec![0; PUMP_BYTES];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
        if write_frame(&mut *to, kind, &buffer[..length]).is_err() {
            break;
        }
    }
}

/// `rsh [OPTION..] HOST COMMAND [ARG..]`, without the first word. Gives the exit code, or the
/// failure for which the caller should exit with [`EXIT_FAILED`].
pub fn client(arguments: impl IntoIterator<Item = OsString>) -> Result<u8> {
    let mut arguments = arguments.into_iter();
    let host = loop {
        let argument = arguments
            .next()
            .context("usage: rsh HOST COMMAND [ARG..]")?;
        let argument = argument.into_string().ok().context("a host name is text")?;
        match argument.as_str() {
            // Options of ssh: those with a value, and the others. None matters here.
            "-l" | "-o" | "-p" | "-i" | "-F" => drop(arguments.next()),
            option if option.starts_with('-') => {}
            _ => break argument,
        }
    };
    let host = host.rsplit('@').next().unwrap_or(&host).to_owned();
    let mut command = Vec::new();
    for argument in arguments {
        if !command.is_empty() {
            command.push(b' ');
        }
        command.extend_from_slice(argument.as_encoded_bytes());
    }
    ensure!(!command.is_empty(), "usage: rsh HOST COMMAND [ARG..]");

    let mut from = connect(&host)?;
    write_frame(&mut from, COMMAND, &command).context("sending the command")?;
    let to = Mutex::new(from.try_clone().context("sharing the connection")?);
    // Blocks in read for as long as nobody types; the process ends around it.
    thread::spawn(move || {
        pump(io::stdin(), INPUT, &to);
        let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write_frame(&mut *to, END_OF_INPUT, &[]);
    });
    loop {
        let (kind, bytes) =
            read_frame(&mut from).with_context(|| format!("the connection to {host} broke"))?;
        match (kind, &bytes[..]) {
            (OUTPUT, bytes) => {
                let mut output = io::stdout();
                output
                    .write_all(bytes)
                    .and_then(|()| output.flush())
                    .context("writing")?;
            }
            (ERRORS, bytes) => io::stderr().write_all(bytes).context("writing")?,
            (EXIT, &[code]) => return Ok(code),
            (kind, _) => bail!("{host} sent a frame of kind {kind}"),
        }
    }
}

fn connect(host: &str) -> Result<TcpStream> {
    let address = (host, PORT)
        .to_socket_addrs()
        .with_context(|| format!("could not resolve hostname {host}"))?
        .next()
        .with_context(|| format!("{host} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .with_context(|| format!("connect to host {host}"))?;
    stream
        .set_nodelay(true)
        .context("setting up the connection")?;
    stream
        .set_read_timeout(Some(CONNECT_TIMEOUT))
        .context("setting up the connection")?;
    let mut banner = [0; BANNER.len()];
    stream
        .read_exact(&mut banner)
        .with_context(|| format!("no banner from {host}"))?;
    ensure!(&banner == BANNER, "{host} is no node");
    stream
        .set_read_timeout(None)
        .context("setting up the connection")?;
    Ok(stream)
}

pub(crate) fn listen(node: usize) -> Result<TcpListener> {
    TcpListener::bind((super::network::address(node), PORT)).context("listening")
}

/// Serves for ever.
pub(crate) fn serve(listener: &TcpListener) {
    for stream in listener.incoming().flatten() {
        // An error is between the server and one client, which sees the connection end.
        thread::spawn(move || drop(serve_one(stream)));
    }
}

fn serve_one(mut from: TcpStream) -> Result<()> {
    from.set_nodelay(true)?;
    from.write_all(BANNER)?;
    let (kind, command) = read_frame(&mut from)?;
    ensure!(kind == COMMAND, "a frame of kind {kind} before the command");
    let command = String::from_utf8(command).context("reading the command")?;
    let mut child = spawn(&command)?;

    let to = Mutex::new(from.try_clone()?);
    let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::spawn(move || feed(from, input));
    let status = thread::scope(|scope| {
        scope.spawn(|| output.map(|output| pump(output, OUTPUT, &to)));
        scope.spawn(|| errors.map(|errors| pump(errors, ERRORS, &to)));
        child.wait()
    })?;
    let mut to = to.into_inner().unwrap_or_else(PoisonError::into_inner);
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(EXIT_FAILED);
    write_frame(&mut to, EXIT, &[code])?;
    to.shutdown(Shutdown::Write)?;
    Ok(())
}

fn spawn(command: &str) -> Result<Child> {
    let home = super::home();
    Command::new("/bin/sh")
        .args(["-c", command])
        .current_dir(&home)
        .env_clear()
        .env("HOME", home)
        .env("PATH", super::search_path())
        .env("SHELL", "/bin/sh")
        .env("USER", "root")
        .env("LOGNAME", "root")
        .envs(super::site_environment())
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running sh")
}

/// Passes the client's input on until its end, or until the client is gone.
fn feed(mut from: TcpStream, mut to: Option<ChildStdin>) {
    while let Ok((kind, bytes)) = read_frame(&mut from) {
        match kind {
            INPUT => {
                // A command that does not read its input is no error.
                if to
                    .as_mut()
                    .is_some_and(|pipe| pipe.write_all(&bytes).is_err())
                {
                    to = None;
                }
            }
            _ => to = None,
        }
    }
}
