import struct

import pytest
import torch

from app.engine.batched.nf4 import wide
from app.engine.batched.nf4.compiling import CannotCompile, compiled
from app.engine.batched.nf4.layout import Matrix, fits, packed, unpacked
from app.engine.batched.nf4.variants import Few, Own, candidates

H100_PROCESSORS, H100_SHARED = 132, 227 * 1024


def frame_bytes(code: bytes) -> int:
    """The largest stack frame of a cubin's functions, from its ELF sections: what found no room in registers."""
    start, size, count, names = struct.unpack_from("<Q", code, 40)[0], *struct.unpack_from("<HHH", code, 58)
    sections = [struct.unpack_from("<IIQQQQ", code, start + i * size) for i in range(count)]
    text = sections[names][4]
    frames = [0]
    for name, _, _, _, at, length in sections:
        end = code.index(b"\0", text + name)
        if code[text + name : end] != b".nv.info":
            continue
        place = at
        while place < at + length:
            form, attribute, value = struct.unpack_from("<BBH", code, place)
            place += 4
            if form == 4:
                if attribute == 0x11:  # EIATTR_FRAME_SIZE: function, bytes
                    frames.append(struct.unpack_from("<II", code, place)[1])
                place += value
    return max(frames)


def random_bytes(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows + columns)
    weight = torch.randint(0, 256, (rows * columns // 2,), dtype=torch.uint8, generator=generator)
    absmax = torch.randint(0, 256, (rows * columns // 64,), dtype=torch.uint8, generator=generator)
    return weight, absmax


@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (32, 128), (64, 320), (4096, 64)])
def test_packing_and_unpacking_gives_the_same_bytes(rows: int, columns: int) -> None:
    weight, absmax = random_bytes(rows, columns)
    records = packed(weight, absmax, rows, columns)
    assert records.shape == (rows // 16, columns // 64, 528)
    again, scales = unpacked(records)
    assert torch.equal(again.view(-1), weight)
    assert torch.equal(scales, absmax)


def test_every_weight_stands_where_the_drawing_says() -> None:
    rows, columns = 32, 128
    weight, absmax = random_bytes(rows, columns)
    high, low = weight >> 4, weight & 15
    codes = torch.stack((high, low), 1).view(rows, columns)
    records = packed(weight, absmax, rows, columns)
    for tile in range(rows // 16):
        for block in range(columns // 64):
            record = records[tile, block]
            for lane in range(32):
                g, q = lane // 4, lane % 4
                for step in range(4):
                    first = 64 * block + 32 * (step // 2) + 8 * q + 4 * (step % 2)
                    for number, (row, column) in enumerate(((g, 0), (g + 8, 0), (g, 2), (g + 8, 2))):
                        byte = int(record[16 * lane + 4 * step + number])
                        pair = codes[16 * tile + row, first + column : first + column + 2]
                        assert [byte & 15, byte >> 4] == pair.tolist()
                scales = absmax.view(rows, columns // 64)[16 * tile :, block]
                assert record[512 + 2 * g : 514 + 2 * g].tolist() == [int(scales[g]), int(scales[g + 8])]


def test_a_part_of_a_joined_matrix_is_that_matrix() -> None:
    first, second = (packed(*random_bytes(rows, 256), rows, 256) for rows in (64, 128))
    matrix = Matrix(
        torch.cat((first, second)),
        torch.arange(3.0),
        torch.arange(12.0),
        torch.zeros(256),
        torch.arange(192).bfloat16(),
    )
    part = matrix.part(64, 128)
    assert torch.equal(part.records, second)
    assert part.records.data_ptr() != matrix.records.data_ptr()
    assert part.group_scales.tolist() == [1.0, 2.0]
    assert part.offsets.tolist() == list(range(4, 12))
    assert part.bias is not None
    assert part.bias[0] == 64
    assert (part.rows, part.columns) == (128, 256)


def test_only_whole_records_and_whole_groups_fit() -> None:
    assert fits(5120, 27648)
    assert fits(1024, 5120)
    assert not fits(8, 2048)
    assert not fits(16, 96)
    assert not fits(16, 64)


@pytest.mark.parametrize("tiles", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("rows", "columns"), [(7168, 5120), (5120, 5120), (55296, 5120), (5120, 27648), (1024, 5120)])
def test_every_shape_of_qwq_has_a_variant_that_fits_an_h100(rows: int, columns: int, tiles: int) -> None:
    found = candidates(rows, columns, tiles, H100_PROCESSORS, H100_SHARED, "sm_90")
    assert found
    assert isinstance(found[0], wide.Wide) == (tiles > 1)
    others = candidates(rows, columns, tiles, H100_PROCESSORS, H100_SHARED, "sm_120")
    assert not any(isinstance(one, wide.Wide) for one in others)
    assert bool(others) == (tiles <= 8)


@pytest.mark.parametrize("architecture", ["sm_90", "sm_120"])
@pytest.mark.parametrize(
    "defines",
    [
        Few(10, 8, 1, 2, 2, 2).defines,
        Own(7, 1, 4, 1, 2, 1, 2, 3, 4).defines,
        ("UNPACK", "MODES=0", "DQS=1"),
    ],
)
def test_the_kernels_compile(architecture: str, defines: tuple[str, ...]) -> None:
    assert compiled(defines, architecture).startswith(b"\x7fELF")


@pytest.mark.parametrize("one", [one for known in wide.KNOWN.values() for one in known], ids=str)
def test_the_kernels_for_many_rows_compile_and_keep_their_sums_in_registers(one: wide.Wide) -> None:
    code = compiled(one.defines, "sm_90")
    assert code.startswith(b"\x7fELF")
    assert frame_bytes(code) == 0


@pytest.mark.parametrize("processors", [132, 114, 78])
@pytest.mark.parametrize("tiles", [2, 4, 8, 16])
@pytest.mark.parametrize(
    ("rows", "columns"), [(256, 1024), (1024, 256), (2048, 2048), (3584, 18944), (8192, 29568), (55296, 5120)]
)
def test_blocks_that_wait_for_each_other_are_all_on_the_card(
    rows: int, columns: int, tiles: int, processors: int
) -> None:
    for one in wide.candidates(rows, columns, tiles, processors, H100_SHARED):
        assert one.splits == 1 or one.grid(rows) <= processors * one.form.together
        assert one.form.together * (one.shared(columns) + 1024) <= 228 * 1024
        assert one.splits * one.form.along * one.form.records <= columns // 64


def test_what_does_not_compile_says_what_the_compiler_said() -> None:
    with pytest.raises(CannotCompile, match="TILES"):
        compiled(("WARPS=1", "RECS=1", "MODES=0", "DQS=1"), "sm_90")
