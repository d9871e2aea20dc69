"""The wheel's packages: jaxembed, and in it the launchers and recipes beside it.

All else is in pyproject.toml.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=['jaxembed', 'jaxembed.*']),
        'jaxembed.launch', 'jaxembed.launch.suites', 'jaxembed.configs'],
    package_dir={'jaxembed.launch': 'launch', 'jaxembed.configs': 'configs'})
