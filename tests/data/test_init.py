import subprocess
import sys

import lorgnette.data


def test_every_public_name_exists() -> None:
    for name in lorgnette.data.__all__:
        assert hasattr(lorgnette.data, name)


def test_data_imports_no_torch() -> None:
    code = (
        "import sys, lorgnette.data\n"
        "heavy = {'torch', 'transformers', 'peft', 'torchvision', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
