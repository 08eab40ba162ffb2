"""Example slices for the report, from public or phantom cases only.

They are drawn here, beside the server, from the node that holds public cases. No
picture is ever asked of a hospital: a picture of a patient is patient data.
"""

import base64
import io
from pathlib import Path

import torch
from PIL import Image

from client.open_site import open_cases
from common.parameters import load_vector
from common.plan import Plan
from common.tasks.catalog import task_of
from deploy.run_folder import final_model
from server.federation import first_model
from server.record import Picture

MOST_PICTURES = 6


def draw_pictures(run_folder: Path, public_folder: Path, plan: Plan) -> list[Picture]:
    """The final model's work on the first public cases."""
    task = task_of(plan)
    cases = open_cases(public_folder, plan)
    network, layout = first_model(plan)
    load_vector(network, layout, final_model(run_folder))
    network.eval()
    pictures = []
    for number, record in enumerate(cases.data.test[:MOST_PICTURES], start=1):
        pixels = task.picture(network, cases.store.open(record), torch.device("cpu"))
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, format="PNG", optimize=True)
        encoded = base64.b64encode(content.getvalue()).decode()
        pictures.append(Picture(caption=f"Public case {number}", png_base64=encoded))
    return pictures
