//! Temporary.
use clap::Parser;
#[derive(Parser)]
enum Cli { Demo(lockstep_demo::DemoArgs), Bench(lockstep_demo::BenchArgs) }
fn main() -> anyhow::Result<std::process::ExitCode> {
    use std::os::unix::process::CommandExt;
    let args: Vec<String> = std::env::args().collect();
    match args[1].as_str() {
        "keys" => Ok(std::process::ExitCode::SUCCESS),
        "run" => Err(std::process::Command::new("python3").arg("/tmp/fakehost.py").args(&args[2..]).exec().into()),
        _ => match Cli::parse() { Cli::Demo(a) => lockstep_demo::demo(&a), Cli::Bench(a) => lockstep_demo::bench(&a) },
    }
}
