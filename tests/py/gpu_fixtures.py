"""Builds what the scanner judges: libraries with GPU code of any kind, wheels, TensorRT plans. Nothing in them runs."""
import struct
import subprocess
import zipfile

PTX, CUBIN, LTO = 1, 2, 8
LINUX64, LZ4, ZSTD, ARCH_SPECIFIC, FAMILY = 0x11, 0x2000, 0x8000, 0x100000, 0x200000
MACHINES = {"x86_64": 0x3E, "aarch64": 0xB7}


def image(kind, sm, flags=0, version=(1, 8), payload=b".text.kernel" + b"\0" * 52):
    """One entry of a fatbin: header of 64 bytes, then the payload, padded to 8. A cubin without a .text section is taken for empty."""
    payload += b"\0" * (-len(payload) % 8)
    return struct.pack("<HHIQIIHHIIIQQQ", kind, 0x0101, 64, len(payload), len(payload) if flags & (LZ4 | ZSTD) else 0, 0,
                       version[1], version[0], sm, 0, 0, LINUX64 | flags, 0, 4 * len(payload) if flags & (LZ4 | ZSTD) else 0) + payload


def ptx(sm, isa, flags=0):
    return image(PTX, sm, flags, isa)


def cubin(sm, flags=0):
    return image(CUBIN, sm, flags)


def container(*images):
    body = b"".join(images)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def compile_library(path, source, *arguments):
    subprocess.run(["gcc", "-shared", "-fPIC", "-nostdlib", "-o", path, "-x", "c", "-", "-x", "none", *map(str, arguments)],
                   input=source.encode(), check=True)


def library(path, needs=(), fatbin=b"", machine="aarch64", section=".nv_fatbin", runpath=None):
    """A shared object that needs the given SONAMEs, each with a symbol version of that name, as NVIDIA's libraries have."""
    work = path.parent / ("build-" + path.name)
    work.mkdir(parents=True)
    arguments, source = [], ""
    for i, soname in enumerate(needs):
        script = work / f"{i}.map"
        script.write_text(f"{soname} {{ global: *; }};\n")
        fake = work / soname
        compile_library(fake, f"int used_{i}(void) {{ return 0; }}\n", f"-Wl,-soname,{soname}", f"-Wl,--version-script,{script}")
        source += f"int used_{i}(void); int call_{i}(void) {{ return used_{i}(); }}\n"
        arguments.append(fake)
    if fatbin:
        blob = work / "fatbin"
        blob.write_bytes(fatbin)
        source += f'__asm__(".section {section},\\"a\\"\\n.balign 8\\n.incbin \\"{blob}\\"\\n.previous\\n");\n'
    if runpath:
        arguments += ["-Wl,--enable-new-dtags", f"-Wl,-rpath,{runpath}"]
    compile_library(path, source or "int nothing;\n", *arguments)
    data = bytearray(path.read_bytes())
    data[18:20] = struct.pack("<H", MACHINES[machine])
    path.write_bytes(data)
    subprocess.run(["rm", "-r", work], check=True)
    return path


def wheel(folder, name, version, tag, members=(), requires=(), requires_python=">=3.9"):
    path = folder / f"{name}-{version}-{tag}.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {requires_python}\n"
                         + "".join(f"Requires-Dist: {r}\n" for r in requires) + "\nText: after the blank line\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: {str(tag.endswith('any')).lower()}\nTag: {tag}\n")
        for member, data in members:
            archive.writestr(member, data)
    return path


def plan(path, version, sms=()):
    """A serialized engine: magic, format version, size, TensorRT's version in bytes 24 to 26, cubins behind."""
    head = b"ptrt" + struct.pack("<IQQ", 0x61, 4096, 0) + bytes(version) + b"\0" * 5
    path.write_bytes(head + container(*map(cubin, sms)) if sms else head + b"\0" * 64)
    return path
