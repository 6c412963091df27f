"""Solutions of notebook 08, by exercise: checker -> answer; and wrong answers that the checkers must refuse."""


def gain(numbers, protocol):
    """Restored minus rainy, in dB."""
    return numbers["scores"][protocol]["psnr"] - numbers["psnr_of_the_rainy_input"][protocol]


SOLUTIONS = {"check_pixels": 3.5 * 300, "check_cut_axis": 0.5 / 0.2, "check_gain": gain}
WRONG = {
    "check_pixels": [300 / 3.5, 7.16 * 300, 300, "wide"],
    "check_cut_axis": [30.5 / 30.2, 0.3, 0.4, 2.0],
    "check_gain": [
        lambda numbers, protocol: -gain(numbers, protocol),
        lambda numbers, protocol: numbers["scores"][protocol]["psnr"],
        lambda numbers, protocol: gain(numbers, "rgb"),
        lambda numbers, protocol: numbers["scores"][protocol],
        lambda numbers, protocol: numbers[protocol],
    ],
}
